"""Carrying out a study: trials of learning rates, then one comparison a seed. What is finished is never redone."""

import datetime
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdiff.evaluation import machine
from tpdiff.evaluation.arms import Arms
from tpdiff.evaluation.budget import operations, warm_up
from tpdiff.evaluation.judge import Judge
from tpdiff.evaluation.kept import refuse_other_judges
from tpdiff.evaluation.samples import Sampling, sampler
from tpdiff.evaluation.study import (
    Study,
    rates_of,
    read_seed,
    read_trial,
    seed_file,
    trial_file,
    write_result,
)
from tpdiff.training.progress import Status
from tpdiff.training.section import Section
from tpdiff.training.trainer import Trainer

Tell = Callable[[str, Status], None]


class Interrupted(Exception):
    """A stop was asked for; everything up to the last step is kept."""


@dataclass
class Desk:
    """Where a study is carried out.

    Attributes:
        study: what is compared.
        data: the set's folder.
        work: checkpoints; may be lost without losing a finished result.
        results: one JSON a trial and a seed.
        judge: takes the figures.
        say: told of every result, in words.
        tell: told of every arm's progress.
        on_arms: is handed the arms while they train, so that a signal can stop them.
    """

    study: Study
    data: Path
    work: Path
    results: Path
    judge: Judge
    say: Callable[[str], None] = print
    tell: Tell | None = None
    on_arms: Callable[[Arms], None] = lambda arms: None

    @property
    def sampling(self) -> Sampling:
        return Sampling(steps=self.study.steps, guidance_scale=self.study.guidance_scale)

    def trial_file(self, lr: float) -> Path:
        return trial_file(self.results, lr)

    def seed_file(self, seed: int) -> Path:
        return seed_file(self.results, seed)


def run_trial(desk: Desk, lr: float) -> dict[str, Any]:
    """All arms at one learning rate for the sweep's seconds: their distances.

    Raises:
        Interrupted: a stop was asked for.
        ValueError: the trial that is kept was made with other settings.
    """
    study, path = desk.study, desk.trial_file(lr)
    result = read_trial(study, desk.results, lr)
    if result.get("done"):
        return result
    out = desk.work / f"trial-{lr:g}"
    arms = _open_arms(desk, out, study.sweep_seed, dict.fromkeys(study.arms, lr), study.sweep_seconds)
    flops = {name: warm_up(trainer) for name, trainer in arms.trainers.items()}
    _train(desk, arms, study.sweep_seconds)
    rows = {name: _measure(desk, t, flops[name], study.sweep_seed) for name, t in arms.trainers.items()}
    made = provenance(study, study.trial_settings(lr))
    result = {"lr": lr, "seed": study.sweep_seed, "arms": rows, "made": made, "done": True}
    write_result(path, result)
    for name, row in rows.items():
        desk.say(f"lr {lr:g}: {name} {row['distance']:.3f} after {row['steps']} steps")
    return result


def best_rates(desk: Desk) -> dict[str, float]:
    """Each arm's learning rate of least distance among the trials.

    Raises:
        ValueError: a trial is not finished, or was made with other settings.
    """
    study = desk.study
    trials = [read_trial(study, desk.results, lr) for lr in study.learning_rates]
    absent = [lr for lr, t in zip(study.learning_rates, trials, strict=True) if not t.get("done")]
    if absent:
        raise ValueError(f"the trials of learning rate {', '.join(f'{lr:g}' for lr in absent)} are not finished")
    return {arm: min(trials, key=lambda t: t["arms"][arm]["distance"])["lr"] for arm in study.arms}


def run_seed(desk: Desk, seed: int) -> dict[str, Any]:
    """One comparison: all arms for the study's seconds, judged at equal distances in time and thoroughly at the end.

    Raises:
        Interrupted: a stop was asked for.
        ValueError: the trials are not finished, or what is kept of the seed was made with other settings, or is
            unfinished and of another judge.
    """
    study, path, out = desk.study, desk.seed_file(seed), desk.work / f"seed-{seed}"
    result = read_seed(study, desk.results, seed)
    if result.get("done"):
        return result
    rates = rates_of(result) if result else best_rates(desk)
    protocol = desk.judge.protocol(desk.sampling)
    refuse_other_judges(path, result, protocol)
    if not result:
        shutil.rmtree(out, ignore_errors=True)  # weights whose record is lost
    arms = _open_arms(desk, out, seed, rates, study.seconds)
    flops = {name: warm_up(trainer) for name, trainer in arms.trainers.items()}
    if not any(trainer.step for trainer in arms.trainers.values()):  # new, or what was half done has lost its weights
        configs = {name: t.config.model_dump(mode="json") for name, t in arms.trainers.items()}
        rows = {n: {"lr": rates[n], "config": configs[n], "flops": flops[n], "evaluations": []} for n in configs}
        made = provenance(study, study.seed_settings(seed, rates))
        result = {"seed": seed, "arms": rows, "made": made, "protocol": protocol}
    for number in range(study.evaluations + 1):
        _train(desk, arms, study.seconds * number / study.evaluations)
        for name, trainer in arms.trainers.items():
            taken = result["arms"][name]["evaluations"]
            if len(taken) <= number:
                taken.append(_measure(desk, trainer, flops[name], seed))
                write_result(path, result)
        scores = (f"{name} {result['arms'][name]['evaluations'][number]['distance']:.3f}" for name in arms.trainers)
        desk.say(f"seed {seed}, {study.seconds * number / study.evaluations:.0f} s: {', '.join(scores)}")
    kept = {n: out / n / f"final-{t.step}" for n, t in arms.trainers.items()}
    for name, trainer in arms.trainers.items():
        if not desk.judge.holds(result["arms"][name].get("final", {}), kept[name]):
            desk.say(f"seed {seed}: {study.final_clips} samples of {name}")
            final = desk.judge.verdict(sampler(trainer), study.final_clips, desk.sampling, noise_seed(seed), kept[name])
            result["arms"][name]["final"] = final
            write_result(path, result)
    base, *others = arms.trainers
    result["paired"] = {name: desk.judge.paired(kept[base], kept[name], seed) for name in others}
    result["done"] = True
    write_result(path, result)
    return result


def provenance(study: Section, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """When, where and from what a result was made; `asked` is what it depends on, see `kept.refuse_others`."""
    return {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "study": study.model_dump(mode="json"),
        "asked": asked or {},
    }


def _open_arms(desk: Desk, out: Path, seed: int, rates: dict[str, float], seconds: float) -> Arms:
    configs = {name: desk.study.config(name, desk.data, seed, rates[name], seconds) for name in desk.study.arms}
    arms = Arms(configs, out, desk.study.clock)
    desk.on_arms(arms)
    return arms


def _train(desk: Desk, arms: Arms, until: float) -> None:
    if until > 0:
        arms.run(desk.study.slice_seconds, desk.tell, until=until, save_slices=True)
    if arms.stop_requested:
        raise Interrupted


def _measure(desk: Desk, trainer: Trainer, flops: list[int], seed: int) -> dict[str, Any]:
    """The distance of an arm as it is now, with what it has cost so far."""
    distance = desk.judge.distance(sampler(trainer), desk.study.clips, desk.sampling, noise_seed(seed))
    return {
        "seconds": trainer.seconds,
        "steps": trainer.step,
        "clips": trainer.samples,
        "tokens": trainer.tokens,
        "flops": operations(trainer, flops),
        "distance": distance,
    }


def noise_seed(seed: int) -> int:
    """Samples of one study seed start from other noise than those of the next."""
    return 1_000_000 * (seed + 1)
