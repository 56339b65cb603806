"""Other ways to enter a stage, for comparison with the right one (MATH 3)."""

import math

from torch import Tensor

from tpdiff.pyramid.noise import Generators, randn
from tpdiff.pyramid.stages import Pyramid


class PlainJump(Pyramid):
    """Stages are entered by upsampling and rescaling alone: no corrective noise, so that neighbours' noise is equal."""

    def jump(self, x: Tensor, k: int, generator: Generators = None) -> Tensor:
        """Stage k+1's clean end (B, C, T, H, W) -> stage k's start, too little noise and not white."""
        return self.jump_coefficient(k) * self.resizer.up(x, self.ratio(k))


class PrintedJump(Pyramid):
    """Stages are entered with the coefficient that TPDiff's Eq. 15 prints, √d γ_s / (σ_s + √d γ_s): γ_e itself where
    γ + σ = 1, in place of γ_s / γ_e. The corrective noise is the right one's.
    """

    def jump(self, x: Tensor, k: int, generator: Generators = None) -> Tensor:
        """Stage k+1's clean end (B, C, T, H, W) -> stage k's start, its mean and covariance off (MATH 3, errata)."""
        start, end = self.stages[k].start_level, self.stages[k + 1].end_level
        signal = math.sqrt(self.block(k)) * start.alpha
        lifted = self.resizer.up(x, self.ratio(k))
        z = randn(lifted.shape, generator, x.device, x.dtype)
        right = self.jump_coefficient(k)
        noise = self.resizer.corrective_noise(z, self.ratio(k), start.sigma, right * end.sigma)
        return signal / (start.sigma + signal) * lifted + noise


JUMPS: dict[str, type[Pyramid]] = {"corrected": Pyramid, "plain": PlainJump, "printed": PrintedJump}
