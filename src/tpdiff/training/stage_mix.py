"""Which stage a micro-batch is of, and how many clips it holds.

With a token budget a micro-batch of a coarse stage holds more clips than one of a fine stage, in as much memory. A
stage is then drawn with its weight divided by its clips, and the loss of a micro-batch counts by its clips: the weights
stay the shares of the samples, and the gradient to be expected is that of batches of one size. A micro-batch that goes
through all stages takes each with its weight: the gradient is the one to be expected of a drawn stage.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from tpdiff.pyramid.stages import Pyramid
from tpdiff.training.config import Config, TrainConfig
from tpdiff.training.distribution import share_of
from tpdiff.training.objective import draw_stage
from tpdiff.training.randomness import micro_batch_generator


@dataclass(frozen=True)
class StageMix:
    """The micro-batches of a run, a function of the step alone.

    Attributes:
        seed: of the run.
        train: how it is trained.
        pyramid: its stages.
        tokens: of one clip at each stage, finest first.
        clips: in a micro-batch of each stage on every process, finest first.
        in_turn: steps are of one stage after another, of those that have a weight, instead of drawn ones.
    """

    seed: int
    train: TrainConfig
    pyramid: Pyramid
    tokens: tuple[int, ...]
    clips: tuple[int, ...]
    in_turn: bool = False

    @property
    def wanted(self) -> list[float]:
        """`train.stage_weights`, finest first: the shares of the samples, not yet summing to 1."""
        weights = self.train.stage_weights if len(self.pyramid) > 1 else None
        return [1.0] * len(self.pyramid) if weights is None else weights[::-1]

    @property
    def trained(self) -> list[int]:
        """The stages that have a weight, finest first."""
        return [k for k, wanted in enumerate(self.wanted) if wanted > 0]

    @property
    def weights(self) -> list[float]:
        """By which the stages of micro-batches are drawn, finest first."""
        least = min(self.clips)
        return [wanted * (least / clips) for wanted, clips in zip(self.wanted, self.clips, strict=True)]

    @property
    def shares(self) -> list[float]:
        """Of the micro-batches that are of each stage, finest first."""
        return [weight / sum(self.weights) for weight in self.weights]

    def stages(self, step: int, micro: int) -> list[int]:
        """Those that micro-batch `micro` of the step after `step` goes through; the same on every process."""
        if self.in_turn:
            return [self.trained[step % len(self.trained)]]
        if self.train.all_stages:
            return self.trained
        generator = micro_batch_generator(self.seed, step, micro, self.train.accumulation)
        return [draw_stage(self.pyramid, self.weights[::-1], generator)]

    def sizes(self, step: int) -> Iterator[int]:
        """Clips of this process in one micro-batch after another, from the step after `step` on."""
        for later in count(step):
            for micro in range(self.train.accumulation):
                yield self.clips[self.stages(later, micro)[0]]

    def counts(self, stage: int) -> float:
        """How much the mean loss of a micro-batch at a stage counts: its clips against their number in the mean; where
        each goes through all stages, the stage's weight against the mean weight."""
        if self.train.all_stages and not self.in_turn:
            return self.wanted[stage] * len(self.stages(0, 0)) / sum(self.wanted)
        return self.clips[stage] * sum(self.weights) / (min(self.clips) * sum(self.wanted))


def open_mix(
    config: Config,
    pyramid: Pyramid,
    latent: Sequence[int],
    patch: Sequence[int],
    processes: int,
    rank: int = 0,
) -> StageMix:
    """The mix that a configuration asks for. Warns, on the first process, of a token budget whose clips cannot be
    shared out evenly, so that the run differs from that of one process.

    Args:
        config: the run.
        pyramid: its stages.
        latent: (C, t, h, w) of a clip's latents at full size.
        patch: (t, h, w) of a token.
        processes: among which batches, or a token budget, are divided.
        rank: this process.

    Raises:
        ValueError: a batch that does not divide.
    """
    train = config.train
    sizes = [pyramid.stage_shape((1, *latent), k)[2:] for k in range(len(pyramid))]
    tokens = tuple(math.prod(-(-n // p) for n, p in zip(size, patch, strict=True)) for size in sizes)
    if train.token_budget is None:
        clips = (share_of(train.batch_size, processes),) * len(tokens)
    else:
        clips = _evenly(train.token_budget, tokens, processes)
        here, alone = tuple(n * processes for n in clips), _evenly(train.token_budget, tokens, 1)
        if here != alone and rank == 0:
            warnings.warn(
                f"train.token_budget {train.token_budget} holds {_listed(alone)} clips of the stages, finest first, in "
                f"one process and {_listed(here)} in {processes}, as many in each: this run is not that of one process",
                stacklevel=2,
            )
    return StageMix(config.seed, train, pyramid, tokens, clips)


def _evenly(budget: int, tokens: Sequence[int], processes: int) -> tuple[int, ...]:
    """Clips of each stage on every process: of those that fit into the budget, as many on one as on another, and at
    least one.
    """
    return tuple(max(1, budget // n // processes) for n in tokens)


def _listed(counts: Sequence[int]) -> str:
    return "-".join(map(str, counts))
