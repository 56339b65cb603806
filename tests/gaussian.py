"""A Gaussian video whose perfect denoiser is known, and the exact law of what a sampler makes of it.

x0 ~ N(m, C) over T frames, of one pixel unless told otherwise. Given a noisy point of a stage, every conditional
expectation is affine in it, so solver steps and jumps are affine in the Gaussian numbers that went in (the start noise
and each jump's noise). Pushing the basis vectors of those numbers through the sampler gives that map J exactly: the
output's mean is the image of zero and its covariance is J Jᵀ. There is no Monte Carlo error to allow for.
"""

import importlib
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
    """N(mean, cov) over time, height and width, and its perfect denoiser at every stage of `pyramid`."""

    pyramid: Pyramid
    mean: np.ndarray
    cov: np.ndarray
    prediction_type: str
    frame: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        height, width = self.frame
        self.size = size = (len(self.mean) // (height * width), height, width)
        strides = [stage.factors for stage in self.pyramid.stages]
        self.downs = [self.over_axes(block_mean, size, stride) for stride in strides]
        self.lifted = []  # U D_{k+1}; the coarsest stage has no high band
        for k, down in enumerate(self.downs):
            if k + 1 < len(strides):
                shape = self.pyramid.stage_shape((1, 1, *size), k)[2:]
                ratio = [c // f for f, c in zip(strides[k], strides[k + 1], strict=True)]
                self.lifted.append(self.over_axes(repetition, shape, ratio) @ self.downs[k + 1])
            else:
                self.lifted.append(down)

    def over_axes(self, matrix, size, ratio) -> np.ndarray:
        """`block_mean` or `repetition` along all three axes; only time may be causal."""
        t, h, w = (
            matrix(n, r, self.pyramid.causal_time and axis == 0)
            for axis, (n, r) in enumerate(zip(size, ratio, strict=True))
        )
        return np.kron(np.kron(t, h), w)

    def sizes(self) -> list[int]:
        """Elements of every stage, finest first."""
        return [len(down) for down in self.downs]

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
        """E[target | x_t] for x (B, 1, T, H, W)."""
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


def law_of(video: GaussianVideo, run, *, true_start=False, jump_noise=True, dtype=torch.float64):
    """Exact (mean, covariance) of what `run` makes of start noise (B, 1, T, H, W) and of the noise of its jumps.

    `true_start`: start from the law of stage S-1 at the schedule's last level instead of from N(0, I).
    `jump_noise`: False leaves the corrective noise out.
    """
    sizes = video.sizes()[::-1]  # coarsest first, in the order in which noise is drawn
    rows = sum(sizes) + 1  # one row a Gaussian number, and a last row of zeros
    basis = torch.eye(rows, dtype=torch.float64)[:, :-1]
    draws = list(basis.split(sizes, dim=1))
    start, jumps = draws[0], iter(draws[1:])
    if true_start:
        level = video.pyramid.stages[-1].start_level
        mean, cov = video.law(len(sizes) - 1, level.alpha, level.sigma)
        start = start @ torch.from_numpy(np.linalg.cholesky(cov)).T + torch.from_numpy(mean)

    def injected(shape, generator=None, device=None, dtype=torch.float32):
        return next(jumps).reshape(shape).to(dtype) * (1 if jump_noise else 0)

    shape = video.pyramid.stage_shape((rows, 1, *video.size), len(sizes) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump_module, "randn", injected)
        out = run(start.reshape(shape).to(dtype))
    assert next(jumps, None) is None
    out = out.double().flatten(1).numpy()
    mean, jacobian = out[-1], (out[:-1] - out[-1]).T
    return mean, jacobian @ jacobian.T


def sampled_law(video: GaussianVideo, steps: int, *, true_start: bool = False, jump_noise: bool = True, **options):
    """Exact (mean, covariance) of the sampler's output, `steps` steps a stage; see `law_of`."""
    options = {"prediction_type": video.prediction_type, "dtype": torch.float64, **options}
    counts = [steps] * len(video.pyramid)

    def run(start):
        return sample_pyramid(video, video.pyramid, (len(start), 1, *video.size), counts, latents=start, **options)

    return law_of(video, run, true_start=true_start, jump_noise=jump_noise)


def law_error(video: GaussianVideo, steps: int, **options) -> float:
    """Largest absolute error over the entries of the mean and the covariance."""
    mean, cov = sampled_law(video, steps, **options)
    return max(np.abs(mean - video.mean).max(), np.abs(cov - video.cov).max())


def autoregressive(frames: int, correlation: float = 0.8, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A mean that is no constant, and the covariance scale² correlation^|i-j|."""
    index = np.arange(frames)
    mean = 0.6 * np.cos(0.9 * index) + 0.3
    return mean, scale**2 * correlation ** np.abs(index[:, None] - index)
