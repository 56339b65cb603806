"""The pyramid: a partition of the denoising process into stages of growing size (MATH 1-3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from tpdiff.pyramid.geometry import AXIS_NAMES, check_axis, exact_strides, plain_strides
from tpdiff.pyramid.jump import check_feasible, jump, jump_coefficient, roll_back, roll_forward
from tpdiff.pyramid.noise import Generators
from tpdiff.pyramid.operators import Ratio
from tpdiff.pyramid.resize import Resizer, ratio_between
from tpdiff.pyramid.schedule import CLEAN, Level, Schedule, schedule_from_config
from tpdiff.pyramid.targets import StagePair, virtual_pair


@dataclass(frozen=True)
class Stage:
    """One stage: it denoises from `start_level` down to `end_level` at `factors` of the full size.

    Attributes:
        index: k, 0 the finest.
        factors: (T, H, W) stride against full size; whole ones are ints.
        start_level: the noisy level s_k.
        end_level: the clean level e_k.
    """

    index: int
    factors: tuple[float, float, float]
    start_level: Level
    end_level: Level

    @property
    def start(self) -> float:
        """s_k, a time in [0, 1]."""
        return self.start_level.t

    @property
    def end(self) -> float:
        """e_k, a time in [0, 1]."""
        return self.end_level.t


class Pyramid:
    """Stages, their levels, and everything that happens inside and between them.

    Args:
        schedule: the base method's noise schedule.
        factors: (T, H, W) stride of each stage against full size, finest first; the finest is (1, 1, 1). Strides
            may be fractions (1.5, Fraction(4, 3)) where the operator can resize by their ratios: "dct" can.
        ends: e_1 .. e_{S-1}, so ends[k-1] = e_k, rising in (0, 1); each start follows by the roll-back.
            None, with `starts` None too: uniform, e_k = k / S.
        starts: s_0 .. s_{S-2}; each end follows. Give both only where both are known: they are then checked, and
            need not rise, since stages may overlap in t as far as they like.
        resize: the resizing operator: "haar", "dct", "linear", or an orthogonal wavelet such as "db2".
        causal_time: the time axis is 1 + n frames and its first frame is never merged.

    Raises:
        ValueError: illegal factors, times out of order, or a jump that no noise can make right.
    """

    def __init__(
        self,
        schedule: Schedule,
        factors: Sequence[Sequence[float | Fraction]] = ((1, 1, 1),),
        *,
        ends: Sequence[float] | None = None,
        starts: Sequence[float] | None = None,
        resize: str = "haar",
        causal_time: bool = False,
    ):
        self.schedule = schedule
        self._strides = exact_strides(factors)
        self.factors = tuple(plain_strides(strides) for strides in self._strides)
        self.resizer = Resizer(resize, causal_time)
        self.causal_time = causal_time
        for k in range(len(self.factors) - 1):
            self.resizer.operator.check_ratio(self.ratio(k))
        self.stages = self._build(ends, starts)

    def __len__(self) -> int:
        return len(self.stages)

    def _build(self, ends: Sequence[float] | None, starts: Sequence[float] | None) -> tuple[Stage, ...]:
        count = len(self.factors)
        if ends is None and starts is None:
            ends = [k / count for k in range(1, count)]
        rising = ends is None or starts is None
        end_levels = self._levels("ends", ends, rising)
        start_levels = self._levels("starts", starts, rising)
        if start_levels is None:
            assert end_levels is not None
            start_levels = [roll_back(e, self.block(k), self.schedule) for k, e in enumerate(end_levels)]
        if end_levels is None:
            end_levels = [roll_forward(s, self.block(k), self.schedule) for k, s in enumerate(start_levels)]
            self._levels("ends", [end.t for end in end_levels])
        for k, (end, start) in enumerate(zip(end_levels, start_levels, strict=True)):
            check_feasible(end, start, self.block(k))
        all_ends = [CLEAN, *end_levels]
        all_starts = [*start_levels, self.schedule.level(1.0)]
        for k, (start, end) in enumerate(zip(all_starts, all_ends, strict=True)):
            if not start.kappa > end.kappa:
                raise ValueError(
                    f"stage {k} must start noisier than it ends; it runs from t = {start.t:.6g} to {end.t:.6g}"
                )
        parts = zip(self.factors, all_starts, all_ends, strict=True)
        return tuple(Stage(k, f, s, e) for k, (f, s, e) in enumerate(parts))

    def _levels(self, name: str, times: Sequence[float] | None, rising: bool = True) -> list[Level] | None:
        if times is None:
            return None
        wanted = len(self.factors) - 1
        if len(times) != wanted:
            raise ValueError(f"{name} has {len(times)} times; {len(self.factors)} stages need {wanted}")
        noisiest = name == "starts" and self.schedule.level(1.0).alpha > 0  # some signal is left there to start from
        outside = any(not (0 < t < 1 or (noisiest and t == 1)) for t in times)
        if outside or (rising and any(b <= a for a, b in pairwise(times))):
            must, within = "rise strictly" if rising else "lie", "(0, 1]" if noisiest else "(0, 1)"
            raise ValueError(f"{name} must {must} inside {within}, finest stage first; got {list(times)}")
        return [self.schedule.level(float(t)) for t in times]

    # Sizes

    def ratio(self, k: int) -> Ratio:
        """(T, H, W) ratio of the jump from stage k+1 into stage k."""
        return ratio_between(self._strides[k], self._strides[k + 1])

    def block(self, k: int) -> float:
        """d of the jump into stage k: fine elements per coarse element (the nominal one on a causal axis)."""
        return self.resizer.operator.block(self.ratio(k))

    @property
    def multiples(self) -> tuple[int, int, int]:
        """(T, H, W): what full size must be a multiple of for every stage to come out whole.

        N elements at stride p/q are N q / p: whole where p, in lowest terms, divides N. On a causal axis N counts
        the elements after the first.
        """
        t, h, w = (math.lcm(*(stage[axis].numerator for stage in self._strides)) for axis in range(3))
        return t, h, w

    def stage_shape(self, shape: Sequence[int], k: int) -> tuple[int, ...]:
        """Full-size (B, C, T, H, W) -> the shape at stage k.

        Raises:
            ValueError: a size that some stage cannot hold, with the nearest legal ones.
        """
        self.check_shape(shape)
        t, h, w = self._strides[self._checked(k)]
        alone = int(self.causal_time)
        return (shape[0], shape[1], alone + int((shape[2] - alone) / t), int(shape[3] / h), int(shape[4] / w))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse a full-size shape (B, C, T, H, W) that some stage cannot hold.

        Raises:
            ValueError: the axis, its value, the rule and the nearest legal values.
        """
        if len(shape) != 5:
            raise ValueError(f"expected a shape (B, C, T, H, W), got {tuple(shape)}")
        for axis, name in enumerate(AXIS_NAMES):
            multiple = {"pyramid": self.multiples[axis]}
            check_axis(name, shape[axis + 2], multiple, causal=self.causal_time and axis == 0)

    def down(self, x: Tensor, k: int) -> Tensor:
        """D_k x: full size (B, C, T, H, W) -> stage k."""
        return self.resizer.down(x, ratio_between(self._strides[0], self._strides[self._checked(k)]))

    def up(self, x: Tensor, k: int) -> Tensor:
        """U x: stage k+1 (B, C, T, H, W) -> stage k."""
        return self.resizer.up(x, self.ratio(k))

    # Inside a stage

    def pair(self, clean: Tensor, coarse: Tensor | None, noise: Tensor, k: int) -> StagePair:
        """The virtual pair of stage k (MATH 2; TPDiff Eqs. 7-11).

        Args:
            clean: D_k x_0, (B, C, T, H, W) at stage k's size.
            coarse: D_{k+1} x_0 (or stage k+1's own encoded latent); None at the coarsest stage.
            noise: ε, of clean's shape.
            k: the stage.

        Raises:
            ValueError: shapes that do not belong together, or a coarse latent where none belongs.
        """
        if noise.shape != clean.shape:
            raise ValueError(f"noise {tuple(noise.shape)} and clean {tuple(clean.shape)} differ in shape")
        stage = self.stages[self._checked(k)]
        if (coarse is None) != (k == len(self) - 1):
            raise ValueError(f"stage {k} of {len(self)} {'needs a' if coarse is None else 'takes no'} coarse latent")
        if coarse is None:
            return StagePair(clean, noise, self.schedule, stage.start_level, stage.end_level)
        lifted = self.up(coarse, k)
        if lifted.shape != clean.shape:
            raise ValueError(f"coarse {tuple(coarse.shape)} does not upsample to clean {tuple(clean.shape)}")
        pair = virtual_pair(clean, lifted, noise, stage.start_level, stage.end_level)
        return StagePair(*pair, self.schedule, stage.start_level, stage.end_level)

    def times(self, u: Tensor, k: int) -> Tensor:
        """t = e_k + u (s_k - e_k): u (B,) in (0, 1) spread over stage k (MATH 3)."""
        stage = self.stages[self._checked(k)]
        return stage.end + u * (stage.start - stage.end)

    def levels(self, k: int, steps: int, spacing: str = "time") -> list[Level]:
        """The steps + 1 levels that a sampler visits in stage k, from s_k to e_k inclusive.

        `spacing`: "time" is uniform in t (the default everywhere), "angle" uniform in atan κ, as far as the
        schedule's first level.

        Raises:
            ValueError: fewer than one step, or an unknown spacing.
        """
        if steps < 1:
            raise ValueError(f"stage {k} needs at least one step, got {steps}")
        stage = self.stages[self._checked(k)]
        fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1].tolist()
        if spacing == "time":
            inner = [self.schedule.level(stage.start + f * (stage.end - stage.start)) for f in fractions]
        elif spacing == "angle":
            first, last = stage.start_level.angle, max(stage.end_level.angle, self.schedule.level(0.0).angle)
            kappas = torch.tensor([first + f * (last - first) for f in fractions], dtype=torch.float64).tan()
            inner = [self.schedule.level_from_kappa(kappa) for kappa in kappas.tolist()]
        else:
            raise ValueError(f"unknown spacing {spacing!r}; known: time, angle")
        return [stage.start_level, *inner, stage.end_level]

    # Between stages

    def jump_coefficient(self, k: int) -> float:
        """c = γ_{s_k} / γ_{e_{k+1}} of the jump into stage k."""
        return jump_coefficient(self.stages[k + 1].end_level, self.stages[k].start_level)

    def jump(self, x: Tensor, k: int, generator: Generators = None) -> Tensor:
        """Stage k+1's clean end (B, C, T, H, W) -> stage k's noisy start (MATH 3).

        Args:
            x: the latent where stage k+1 ended.
            k: the stage to enter, 0 .. S-2.
            generator: one, or one a sample.
        """
        self._checked(self._checked(k) + 1)
        end, start = self.stages[k + 1].end_level, self.stages[k].start_level
        return jump(x, self.resizer, self.ratio(k), end, start, generator)

    def _checked(self, k: int) -> int:
        if not 0 <= k < len(self):
            raise ValueError(f"no stage {k}: stages are 0, the finest, to {len(self) - 1}")
        return k

    # Saving

    def config(self) -> dict:
        """Plain JSON values from which `from_config` builds the same pyramid."""
        return {
            "schedule": self.schedule.config(),
            "factors": [list(f) for f in self.factors],
            "ends": [stage.end for stage in self.stages[1:]],
            "starts": [stage.start for stage in self.stages[:-1]],
            "resize": self.resizer.name,
            "causal_time": self.causal_time,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Pyramid":
        """The pyramid that `config` described."""
        options = {name: config[name] for name in ("factors", "ends", "starts", "resize", "causal_time")}
        return cls(schedule_from_config(config["schedule"]), **options)
