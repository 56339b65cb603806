"""Carrying out a study of conversion: an original a seed, its conversions, and the controls, all judged alike."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import PartialState

from tpdiff.data import ClipDataset
from tpdiff.evaluation.budget import operations, steps_within, warm_up
from tpdiff.evaluation.conversion import ConversionStudy, is_whole, read_conversion, refuse_other_claims
from tpdiff.evaluation.judge import Judge
from tpdiff.evaluation.kept import refuse_other_judges
from tpdiff.evaluation.latency import count_flops, measure
from tpdiff.evaluation.samples import Sampling, reopened, sample_batch, sampler
from tpdiff.evaluation.spectra import measure_folder
from tpdiff.evaluation.study import seed_file, write_result
from tpdiff.evaluation.study_run import Interrupted, noise_seed, provenance
from tpdiff.pyramid.spectral import spectral_pyramid
from tpdiff.pyramid.spectrum import Spectrum
from tpdiff.sampling.tuned import TunedPipeline
from tpdiff.training.checkpoint import write_pipeline
from tpdiff.training.config import Config
from tpdiff.training.progress import Status
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

ORIGINAL, FEWER = "original", "original, fewer steps"
UNTRAINED, FREE = "original through the converted's stages", "training-free"
LAST_PART = 0.8  # of the original's training, after which its distance is taken a first time
ONE_STEP = 1e-9  # seconds that the first step passes
ROUNDS, TIMED_CLIPS = 5, 8


@dataclass
class ConversionDesk:
    """Where a study of conversion is carried out.

    Attributes:
        study: what is compared.
        data: the set's folder.
        work: checkpoints and samples' figures; may be lost without losing a finished result.
        results: one JSON a seed.
        judge: takes the figures.
        build: (seed, folder) writes the original's pipeline, its network's weights random.
        say: told of every result, in words.
        tell: told of every run's progress.
        on_trainer: is handed every trainer before it runs, so that a signal can stop it.
    """

    study: ConversionStudy
    data: Path
    work: Path
    results: Path
    judge: Judge
    build: Callable[[int, Path], None]
    say: Callable[[str], None] = print
    tell: Callable[[str, Status], None] | None = None
    on_trainer: Callable[[Trainer], None] = lambda trainer: None
    _datasets: dict[int, ClipDataset] = field(default_factory=dict)

    @property
    def plain(self) -> Sampling:
        """How the original is sampled."""
        return Sampling(self.study.steps, self.study.guidance_scale, solver=None, batch=self.study.batch)

    @property
    def staged(self) -> Sampling:
        """How what has stages is sampled."""
        return replace(self.plain, steps=list(self.study.staged_steps))

    def spectrum(self, pipeline: Path) -> Spectrum:
        """That of the training clips' latents, as a pipeline's network sees them."""
        data = self.study.original_config(self.data, pipeline, 0).data
        size = data.frames, data.height, data.width
        return measure_folder(
            self.data / "train", str(pipeline / "vae"), size, fps=data.fps, device=PartialState().device
        )


def run_conversion(desk: ConversionDesk, seed: int) -> dict[str, Any]:
    """One original, converted in every way. Whatever is finished is never redone; a seed that was finished before an
    arm was added stays as it is until that is finished, too.

    Raises:
        Interrupted: a stop was asked for; everything up to the last step is kept.
        ValueError: what is kept of the seed was made with other settings, or is unfinished and of another judge, or
            lacks an arm and the weights to train it from, or was finished for another claim.
    """
    path, out = seed_file(desk.results, seed), desk.work / f"seed-{seed}"
    result = read_conversion(desk.study, desk.results, seed)
    if is_whole(desk.study, result):
        return result
    if result.get("done"):
        absent = [arm for arm in desk.study.arms if arm not in result["variants"]]
        if not out.is_dir():
            raise ValueError(
                f"{path} is finished without {', '.join(absent)}, and the original's weights are not in {out} any "
                "more; leave the arm out, or remove the file to run all of the seed anew"
            )
        refuse_other_claims(desk.study, desk.results, result)
    protocol = desk.judge.protocol(desk.plain)
    refuse_other_judges(path, result, protocol)
    if not result or not out.is_dir():  # of figures and weights, one without the other
        shutil.rmtree(out, ignore_errors=True)
        made = provenance(desk.study, desk.study.settings(seed))
        result = {"seed": seed, "made": made, "protocol": protocol, "variants": {}}

    def keep() -> None:
        if not result.get("done"):
            write_result(path, result)

    keep()
    _train_original(desk, seed, out, result, keep)
    pretrained = out / "pretrained"
    for arm in desk.study.arms:
        _train_arm(desk, seed, arm, out, result, keep)
    claimed = next(iter(desk.study.arms))
    controls = _controls(desk, pretrained, out / claimed)
    for name, (pipeline, sampling) in controls.items():
        if not _is_judged(desk, result, out, name):
            row = {"steps": sampling.steps, "final": _judge(desk, pipeline, sampling, seed, out, name)}
            result["variants"][name] = row
            keep()
    for name, row in result["variants"].items():
        if "sampling_flops" not in row:
            one = controls[name][0] if name in controls else _open(desk, pretrained if name == ORIGINAL else out / name)
            row["sampling_flops"] = _sampling_flops(one, desk, replace(desk.plain, steps=row["steps"]))
            keep()
    if "seconds" not in result:
        result["seconds"] = _times(desk, _open(desk, pretrained), _open(desk, out / claimed))
    rows = out / "rows"
    against = {ORIGINAL: list(result["variants"]), claimed: list(result["variants"])}
    result["paired"] = {
        base: {name: desk.judge.paired(rows / base, rows / name, seed) for name in names if name != base}
        for base, names in against.items()
    }
    result["done"] = True
    write_result(path, result)
    return result


def _controls(desk: ConversionDesk, pretrained: Path, converted: Path) -> dict[str, tuple[TunedPipeline, Sampling]]:
    """The original's weights sampled otherwise: by as many operations as the converted model's, and through stages."""
    staged = _open(desk, converted).config.pyramid
    untrained = _through(desk, pretrained, staged)
    allowed = _sampling_flops(untrained, desk, desk.staged)
    fewer = replace(desk.plain, steps=_steps_for(desk, _open(desk, pretrained), allowed))
    controls = {FEWER: (_open(desk, pretrained), fewer), UNTRAINED: (untrained, desk.staged)}
    if (free := desk.study.training_free) is not None:
        stages = spectral_pyramid(desk.spectrum(pretrained), untrained.pyramid.schedule, free.factors, free.tolerance)
        pipeline = _through(desk, pretrained, stages.config())
        controls[FREE] = pipeline, replace(desk.plain, steps=list(free.steps))
    return controls


def _through(desk: ConversionDesk, folder: Path, pyramid: dict[str, Any]) -> TunedPipeline:
    """A pipeline with other stages than it was trained through."""
    pipeline = _open(desk, folder)
    told = replace(pipeline.config, pyramid=pyramid)
    return TunedPipeline(pipeline.pipe, pipeline.network, told, pipeline.dtype, pipeline.device)


def _train_original(
    desk: ConversionDesk, seed: int, out: Path, result: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Train it, take its distance after `LAST_PART` and at the end, and write it as a stock pipeline."""
    if _is_judged(desk, result, out, ORIGINAL) and (out / "pretrained").is_dir():
        return
    base = out / "base"
    if not base.is_dir():
        desk.build(seed, base)
    config = desk.study.original_config(desk.data, base, seed)
    trainer = _open_trainer(desk, config, out / ORIGINAL, seed)
    flops, steps = warm_up(trainer), config.train.steps
    assert steps is not None
    early = result.setdefault("early", {})
    if "final" not in early:
        _train(desk, trainer, ORIGINAL, int(LAST_PART * steps))
        final = _judge(desk, sampler(trainer), desk.plain, seed, out, f"{ORIGINAL} early")
        early.update(steps=trainer.step, final=final)
        keep()
    _train(desk, trainer, ORIGINAL, steps)
    write_pipeline(out / "pretrained", trainer.pipeline().whole())
    cost = _cost(trainer, flops)
    row = {"steps": desk.study.steps, "final": _judge(desk, sampler(trainer), desk.plain, seed, out, ORIGINAL)}
    result["variants"][ORIGINAL] = row | {"training": cost}
    keep()


def _train_arm(
    desk: ConversionDesk, seed: int, arm: str, out: Path, result: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Train on from the original for a share of its operations."""
    if _is_judged(desk, result, out, arm) and (out / arm).is_dir():
        return
    budget = desk.study.budget * result["variants"][ORIGINAL]["training"]["flops"]
    wanted = desk.study.arm_config(arm, desk.data, out / "pretrained", seed, 1)
    steps, flops = steps_within(wanted, out / arm, budget, _dataset(desk, wanted))
    config = desk.study.arm_config(arm, desk.data, out / "pretrained", seed, steps)
    trainer = _open_trainer(desk, config, out / arm, seed)
    _train(desk, trainer, arm, steps)
    sampling = desk.staged if len(trainer.pyramid) > 1 else desk.plain
    row = {"steps": sampling.steps, "final": _judge(desk, sampler(trainer), sampling, seed, out, arm)}
    result["variants"][arm] = row | {"training": _cost(trainer, flops)}
    keep()


def _train(desk: ConversionDesk, trainer: Trainer, name: str, until: int) -> None:
    """Up to so many steps, with a checkpoint there."""
    desk.on_trainer(trainer)
    tell = desk.tell
    while trainer.step < until and not trainer.stop_requested:
        trainer.run(ONE_STEP, None if tell is None else lambda status: tell(name, status))
    trainer.save()
    if trainer.stop_requested:
        raise Interrupted


def _is_judged(desk: ConversionDesk, result: dict[str, Any], out: Path, name: str) -> bool:
    """By the present judge, and with the figures that comparisons need."""
    return desk.judge.holds(result["variants"].get(name, {}).get("final", {}), out / "rows" / name)


def _judge(desk: ConversionDesk, pipeline: Any, sampling: Sampling, seed: int, out: Path, name: str) -> dict[str, Any]:
    final = desk.judge.verdict(pipeline, desk.study.clips, sampling, noise_seed(seed), out / "rows" / name)
    desk.say(f"seed {seed}: {name} at {sampling.steps} steps: {final['distance']:.1f}")
    return final


def _open_trainer(desk: ConversionDesk, config: Config, out: Path, seed: int) -> Trainer:
    return Trainer(config, out, resume=(out / "config.yaml").exists(), dataset=_dataset(desk, config))


def _dataset(desk: ConversionDesk, config: Config) -> ClipDataset:
    if config.seed not in desk._datasets:
        desk._datasets[config.seed] = open_dataset(config)
    return desk._datasets[config.seed]


def _cost(trainer: Trainer, flops: Sequence[int]) -> dict[str, Any]:
    return {
        "config": trainer.config.model_dump(mode="json"),
        "optimizer_steps": trainer.step,
        "seconds": trainer.seconds,
        "flops": operations(trainer, flops),
        "flops_of_a_clip": list(flops),
    }


def _open(desk: ConversionDesk, folder: Path) -> TunedPipeline:
    """A trained pipeline, in the precision that the study trains in."""
    pipeline: TunedPipeline = reopened(folder, desk.study.original_config(desk.data, folder, 0))
    return pipeline


def _sampling_flops(pipeline: TunedPipeline, desk: ConversionDesk, sampling: Sampling) -> int:
    """Operations of the networks for one clip, text and pixels included."""
    caption = desk.judge.captions(1)
    return count_flops(lambda: sample_batch(pipeline, caption, sampling))


def _steps_for(desk: ConversionDesk, pipeline: TunedPipeline, flops: int) -> int:
    """How many plain steps come nearest to so many operations; text and pixels, the same for any number, are apart."""
    one, two = (_sampling_flops(pipeline, desk, replace(desk.plain, steps=steps)) for steps in (1, 2))
    return max(1, 1 + round((flops - one) / (two - one)))


def _times(desk: ConversionDesk, original: TunedPipeline, converted: TunedPipeline) -> dict[str, Any]:
    """Seconds of a few clips by both, in turns."""
    captions = desk.judge.captions(TIMED_CLIPS)
    runs = measure(
        {
            ORIGINAL: lambda: sample_batch(original, captions, desk.plain),
            "converted": lambda: sample_batch(converted, captions, desk.staged),
        },
        ROUNDS,
    )
    ratios = [a / b for a, b in zip(*runs.values(), strict=True)]
    return {"clips": TIMED_CLIPS, "rounds": runs, "ratio": median(ratios)}
