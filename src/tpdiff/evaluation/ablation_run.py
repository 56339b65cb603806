"""Carrying out an ablation: every variant of every seed is one finished file, never redone."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tpdiff.evaluation.ablation import Ablation, Variant, read_variant, variant_file
from tpdiff.evaluation.budget import operations, steps_within
from tpdiff.evaluation.judge import Judge
from tpdiff.evaluation.jumps import JUMPS
from tpdiff.evaluation.kept import refuse_other_judges
from tpdiff.evaluation.latency import count_flops
from tpdiff.evaluation.samples import Sampling, reopened, sample_batch, sampler
from tpdiff.evaluation.spectra import measure_folder
from tpdiff.evaluation.study import write_result
from tpdiff.evaluation.study_run import Interrupted, noise_seed, provenance
from tpdiff.pyramid.spectral import spectral_pyramid
from tpdiff.pyramid.spectrum import Spectrum
from tpdiff.pyramid.stages import Pyramid
from tpdiff.training.progress import Status
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

TERA = 1e12


@dataclass
class AblationDesk:
    """Where an ablation is carried out.

    Attributes:
        study: what is compared.
        data: the set's folder.
        work: checkpoints and samples' figures; may be lost without losing a finished result.
        results: one JSON a seed and variant.
        judge: takes the figures.
        say: told of every result, in words.
        tell: told of every run's progress.
        on_trainer: is handed every trainer before it runs, so that a signal can stop it.
    """

    study: Ablation
    data: Path
    work: Path
    results: Path
    judge: Judge
    say: Callable[[str], None] = print
    tell: Callable[[str, Status], None] | None = None
    on_trainer: Callable[[Trainer], None] = lambda trainer: None

    @cached_property
    def spectrum(self) -> Spectrum:
        """That of the training clips' latents, as the networks see them."""
        config = self.study.config(self.study.trained[0], self.data, self.study.seeds[0], 1)
        data, model = config.data, config.model
        assert model.autoencoder is not None
        size = data.frames, data.height, data.width
        how: dict[str, Any] = {"fps": data.fps, "scale": model.latent_scale, "device": PartialState().device}
        return measure_folder(self.data / "train", model.autoencoder, size, **how)

    def file(self, seed: int, variant: str) -> Path:
        """Where a variant's result is kept."""
        return variant_file(self.results, seed, variant)

    def rows(self, seed: int, variant: str, steps: int) -> Path:
        """Where the figures of a variant's samples are kept."""
        return self.work / f"seed-{seed}" / "rows" / variant / str(steps)


def run_variant(desk: AblationDesk, seed: int, name: str) -> dict[str, Any]:
    """One variant: trained, or sampled from another's weights, and judged at every number of steps.

    Raises:
        Interrupted: a stop was asked for; everything up to the last step is kept.
        ValueError: the variant whose weights it needs, or that it is compared with, is not finished, or what is kept of
            either was made with other settings, or of this one is unfinished and of another judge.
    """
    study, path = desk.study, desk.file(seed, name)
    result, variant = read_variant(study, desk.results, seed, name), study.variants[name]
    out = desk.work / f"seed-{seed}"
    if result.get("done"):
        return result
    base, told, protocol = study.base(name), study.told(name), desk.judge.protocol(Sampling(study.steps[-1]))
    refuse_other_judges(path, result, protocol)
    for other, why in ((variant.of, "samples from"), (base, "is compared with")):
        if other is not None and not read_variant(study, desk.results, seed, other).get("done"):
            raise ValueError(f"{name} {why} {other}, which is not finished for seed {seed}; run that first")
    if base is not None:
        _check_rows(desk, seed, name, base)
    if not result:
        for folder in (out / name, out / "rows" / name):
            shutil.rmtree(folder, ignore_errors=True)  # whose record is lost
        result = {"seed": seed, "variant": name, "judged": {}}
        result["made"] = provenance(study, study.settings(seed, name))
        write_result(path, result)
    if variant.of is None:
        pipeline, result["training"] = _trained(desk, seed, name, out / name)
    else:
        pipeline = _pipeline(desk, seed, variant.of, out / variant.of)
    pipeline.pyramid = stages_of(desk, pipeline, variant)
    result["pyramid"] = pipeline.pyramid.config()
    result["protocol"] = protocol
    for steps in study.steps:
        sampling, rows = Sampling(steps), desk.rows(seed, name, steps)
        if desk.judge.holds(result["judged"].get(str(steps), {}), rows):
            continue
        verdict = desk.judge.verdict(pipeline, study.clips, sampling, noise_seed(seed), rows, told)
        verdict["sampling_flops"] = clip_flops(pipeline, desk.judge, sampling, told)
        if base is not None:
            verdict["paired"] = desk.judge.paired(desk.rows(seed, base, steps), rows, seed)
        result["judged"][str(steps)] = verdict
        write_result(path, result)
        desk.say(f"seed {seed}: {name} at {steps} steps: {verdict['distance']:.1f}")
    result["done"] = True
    write_result(path, result)
    return result


def _check_rows(desk: AblationDesk, seed: int, name: str, base: str) -> None:
    judged = read_variant(desk.study, desk.results, seed, base)["judged"]
    for steps in desk.study.steps:
        if not desk.judge.holds(judged.get(str(steps), {}), rows := desk.rows(seed, base, steps)):
            raise ValueError(
                f"{name} is compared with {base}, but the figures of its samples at {steps} steps are not in {rows} "
                f"or not of this judge; remove {desk.file(seed, base)}, and the next call makes them anew"
            )


def clip_flops(pipeline: Any, judge: Judge, sampling: Sampling, told: bool = True) -> int:
    """Operations of sampling one clip, text and pixels included."""
    caption = judge.captions(1, told)
    return count_flops(lambda: sample_batch(pipeline, caption, sampling))


def _trained(desk: AblationDesk, seed: int, name: str, out: Path) -> tuple[Any, dict[str, Any]]:
    study = desk.study
    wanted = study.config(name, desk.data, seed, 1)
    dataset = open_dataset(wanted)
    steps, flops = steps_within(wanted, out, study.operations * TERA, dataset)
    config = study.config(name, desk.data, seed, steps)
    trainer = Trainer(config, out, resume=(out / "config.yaml").exists(), dataset=dataset)
    desk.on_trainer(trainer)
    tell = desk.tell
    trainer.run(report=None if tell is None else lambda status: tell(name, status))
    trainer.save()
    if trainer.stop_requested:
        raise Interrupted
    cost = {"optimizer_steps": trainer.step, "seconds": trainer.seconds, "flops": operations(trainer, flops)}
    return sampler(trainer), cost | {"config": config.model_dump(mode="json")}


def _pipeline(desk: AblationDesk, seed: int, name: str, out: Path) -> Any:
    """Another variant's weights, in the precision it is sampled in."""
    config = desk.study.config(name, desk.data, seed, 1)
    return reopened(out, config)


def stages_of(desk: AblationDesk, pipeline: Any, variant: Variant) -> Pyramid:
    """The stages that a variant is sampled through, over its pipeline's schedule."""
    pyramid = pipeline.pyramid
    if variant.spectral is not None:
        pyramid = spectral_pyramid(desk.spectrum, pyramid.schedule, variant.spectral, variant.tolerance)
    return JUMPS[variant.jump].from_config(pyramid.config())
