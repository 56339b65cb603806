"""A Gaussian video whose perfect denoiser is known, and the exact law of what a sampler makes of it.

x0 ~ N(m, C) over T frames of one pixel. Given a noisy point of a stage, every conditional expectation is affine
in it, so solver steps and jumps are affine in the Gaussian numbers that went in (the start noise and each jump's
noise). Pushing the basis vectors of those numbers through the sampler gives that map J exactly: the output's mean
is the image of zero and its covariance is J Jᵀ. There is no Monte Carlo error to allow for.
"""

import importlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tpdiff.pyramid import Pyramid
from tpdiff.sampling.loop import sample_pyramid

jump_module = importlib.import_module("tpdiff.pyramid.jump")


def block_mean(frames: int, stride: int, causal: bool) -> np.ndarray:
    """The (frames // stride, frames) matrix of means over runs of frames; a causal first frame stands alone."""
    alone = 1 if causal else 0
    rows = [[0]] * alone + [list(range(i, i + stride)) for i in range(alone, frames, stride)]
    matrix = np.zeros((len(rows), frames))
    for row, members in zip(matrix, rows, strict=True):
        row[members] = 1 / len(members)
    return matrix


def repetition(frames: int, stride: int, causal: bool) -> np.ndarray:
    """The (frames, frames // stride) matrix that repeats every coarse frame over the frames it stands for."""
    return (block_mean(frames, stride, causal).T > 0).astype(float)


@dataclass
class GaussianVideo:
    """N(mean, cov) over time, and its perfect denoiser at every stage of `pyramid` (time strides only)."""

    pyramid: Pyramid
    mean: np.ndarray
    cov: np.ndarray
    prediction_type: str

    def __post_init__(self) -> None:
        frames, causal = len(self.mean), self.pyramid.causal_time
        strides = [stage.factors[0] for stage in self.pyramid.stages]
        self.downs = [block_mean(frames, stride, causal) for stride in strides]
        self.lifted = []  # U D_{k+1}; the coarsest stage has no high band
        for k, down in enumerate(self.downs):
            if k + 1 < len(strides):
                up = repetition(len(down), strides[k + 1] // strides[k], causal)
                self.lifted.append(up @ self.downs[k + 1])
            else:
                self.lifted.append(down)

    def shapes(self) -> list[tuple[int, int, int]]:
        """(T, H, W) of every stage, finest first."""
        return [(len(down), 1, 1) for down in self.downs]

    def virtual_maps(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) with x0_k = A x0 and ε_k = ε - B x0, from the two boundary points of the stage."""
        s, e = self.pyramid.stages[k].start_level, self.pyramid.stages[k].end_level
        delta = e.alpha * s.sigma - s.alpha * e.sigma
        noisy, clean = s.alpha * self.lifted[k], e.alpha * self.downs[k]  # x0's part of x_s and of x_e
        return (s.sigma * clean - e.sigma * noisy) / delta, (s.alpha * clean - e.alpha * noisy) / delta

    def law(self, k: int, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of x_t in stage k."""
        clean, drift = self.virtual_maps(k)
        signal = alpha * clean - sigma * drift
        return signal @ self.mean, signal @ self.cov @ signal.T + sigma**2 * np.eye(len(signal))

    def __call__(self, x: Tensor, t: Tensor, stage: int) -> Tensor:
        """E[target | x_t] for x (B, 1, T, 1, 1)."""
        alpha = float(self.pyramid.schedule.alpha(t[0].double()))
        sigma = float(self.pyramid.schedule.sigma(t[0].double()))
        clean, drift = self.virtual_maps(stage)
        signal = alpha * clean - sigma * drift
        mean, cov = self.law(stage, alpha, sigma)
        whitened = np.linalg.solve(cov, (x.flatten(1).double().numpy() - mean).T)
        x0 = self.mean[:, None] + self.cov @ signal.T @ whitened
        sample, noise = clean @ x0, sigma * whitened - drift @ x0
        answer = {
            "epsilon": noise,
            "sample": sample,
            "v_prediction": alpha * noise - sigma * sample,
            "flow_prediction": noise - sample,
        }[self.prediction_type]
        return torch.from_numpy(answer.T.copy()).view_as(x)


def sampled_law(video: GaussianVideo, steps: int, *, true_start: bool = False, jump_noise: bool = True, **options):
    """Exact (mean, covariance) of the sampler's output, `steps` steps a stage.

    `true_start`: start from the law of stage S-1 at the schedule's last level instead of from N(0, I).
    `jump_noise`: False leaves the corrective noise out.
    """
    shapes = video.shapes()[::-1]  # coarsest first, in the order in which noise is drawn
    sizes = [math.prod(shape) for shape in shapes]
    rows = sum(sizes) + 1  # one row a Gaussian number, and a last row of zeros
    basis = torch.eye(rows, dtype=torch.float64)[:, :-1]
    parts = zip(basis.split(sizes, dim=1), shapes, strict=True)
    draws = [part.reshape(rows, 1, *shape) for part, shape in parts]
    start, jumps = draws[0], iter(draws[1:])
    if true_start:
        level = video.pyramid.stages[-1].start_level
        mean, cov = video.law(len(sizes) - 1, level.alpha, level.sigma)
        root = torch.from_numpy(np.linalg.cholesky(cov))
        start = (start.flatten(1) @ root.T + torch.from_numpy(mean)).view_as(start)

    def injected(shape, generator=None, device=None, dtype=torch.float32):
        noise = next(jumps)
        assert tuple(shape) == tuple(noise.shape)
        return noise.to(dtype) * (1 if jump_noise else 0)

    shape = (rows, 1, *shapes[-1])
    options = {"prediction_type": video.prediction_type, "dtype": torch.float64, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump_module, "randn", injected)
        out = sample_pyramid(video, video.pyramid, shape, [steps] * len(sizes), latents=start, **options)
    out = out.flatten(1).numpy()
    mean, jacobian = out[-1], (out[:-1] - out[-1]).T
    return mean, jacobian @ jacobian.T


def law_error(video: GaussianVideo, steps: int, **options) -> float:
    """Largest absolute error over the entries of the mean and the covariance."""
    mean, cov = sampled_law(video, steps, **options)
    return max(np.abs(mean - video.mean).max(), np.abs(cov - video.cov).max())


def autoregressive(frames: int, correlation: float = 0.8, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A mean that is no constant, and the covariance scale² correlation^|i-j|."""
    index = np.arange(frames)
    mean = 0.6 * np.cos(0.9 * index) + 0.3
    return mean, scale**2 * correlation ** np.abs(index[:, None] - index)
