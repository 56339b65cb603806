"""What training costs in operations, counted before it and after it."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from tpdiff.data import ClipDataset, collate
from tpdiff.evaluation.latency import count_flops
from tpdiff.training.config import Config
from tpdiff.training.randomness import sample_generators
from tpdiff.training.step import MicroBatch
from tpdiff.training.trainer import Trainer


def warm_up(trainer: Trainer) -> list[int]:
    """Operations of training on one clip at each stage, finest first, counted by running a micro-batch of it once.

    Latents that are kept are encoded now. All the memory that training will use is touched, so that the first slice
    does not pay for it; the weights stay.
    """
    trainer.latents.encode_ahead(trainer.dataset)
    sizes = trainer.mix.clips
    counts = [count_flops(_stage_pass(trainer, stage, size)) // size for stage, size in enumerate(sizes)]
    trainer.network.zero_grad(set_to_none=True)
    return counts


def operations(trainer: Trainer, flops: Sequence[int]) -> int:
    """Those of all training so far, from those of a clip at each stage, finest first."""
    seen = Counter(stage for _, _, stage, _ in trainer.losses)
    return sum(flops[stage] * trainer.mix.clips[stage] * count for stage, count in seen.items())


def steps_within(config: Config, out: Path, budget: float, dataset: ClipDataset) -> tuple[int, list[int]]:
    """How many optimizer steps of a run cost at most `budget` operations, and those of a clip at each stage.

    Raises:
        ValueError: not even one.
    """
    trainer = Trainer(config, out, dataset=dataset, dry=True)
    flops, mix, total = warm_up(trainer), trainer.mix, 0
    for step in count():
        stages = [k for micro in range(config.train.accumulation) for k in mix.stages(step, micro)]
        total += sum(flops[k] * mix.clips[k] for k in stages)
        if total > budget:
            if step == 0:
                raise ValueError(f"one step costs {total:.3g} operations, the budget is {budget:.3g}")
            return step, flops
    raise AssertionError


def _stage_pass(trainer: Trainer, stage: int, size: int) -> Callable[[], None]:
    """A forward and backward pass of so many clips at a stage, all else done beforehand."""
    batch = collate([trainer.dataset[i] for i in range(size)])
    encoded = MicroBatch(trainer, batch, batch["caption"], sample_generators(trainer.config.seed, batch["index"]))

    def step() -> None:
        encoded.loss(stage).loss.backward()

    return step
