"""The perfect network of a Gaussian video, in every family's own convention, and what a pipeline makes of it.

The video is Gaussian along one axis, time or width, and every line along that axis has the same law, so that
`gaussian.GaussianVideo` knows its perfect denoiser at every stage. The pipeline's networks are replaced by it; a batch
of basis vectors in place of noise then gives the pipeline's whole map, with no Monte Carlo error. Every line's basis is
scaled by a number of its own, so that lines that change places are noticed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gaussian import GaussianVideo, autoregressive, jump_module
from recording import size_of
from tiny import Case
from torch import Tensor

from tpdiff.families import find_family
from tpdiff.pyramid import Pyramid
from tpdiff.schedulers.runs import start_level

AXES = {"time": 2, "width": 4}


@dataclass
class Oracle:
    """The network that knows a Gaussian.

    Attributes:
        case: the pipeline's case.
        pipe: the pipeline, with its pyramid.
        axis: "time" or "width".
        skipped: latent frames before the Gaussian ones: a given picture, or frames that fill patches.
        alone: whether the first Gaussian frame is never averaged with others.
    """

    case: Case
    pipe: Any
    axis: str
    skipped: int
    alone: bool

    def __post_init__(self) -> None:
        scheduler, self.family = self.pipe.scheduler, find_family(self.pipe)
        pyramid, self.dim = scheduler.pyramid, AXES[self.axis]
        self.flow = pyramid.schedule.name == "flow_matching"
        self.backwards = bool(scheduler.config.get("invert_sigmas"))
        lines = Pyramid(
            pyramid.schedule,
            [(factors[self.dim - 2], 1, 1) for factors in pyramid.factors],
            ends=[stage.end for stage in pyramid.stages[1:]],
            starts=[start_level(scheduler.base, pyramid, k).t for k in range(len(pyramid) - 1)],
            causal_time=self.alone and self.axis == "time",
        )
        length = self.case.latent[self.dim - 2] - (self.skipped if self.axis == "time" else 0)
        kind = "flow_prediction" if self.flow else scheduler.config.prediction_type
        self.video = GaussianVideo(lines, *autoregressive(length), kind)

    def pixels(self) -> tuple[int, int, int]:
        """A call's size: long along the axis, the least elsewhere."""
        if self.axis == "time":
            return self.case.narrow
        frames = self.family.vae_ratio(self.pipe)[0] * self.family.patch(self.pipe)[0]
        return (1 + frames if self.family.causal_vae else frames), self.case.side, self.case.size[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's forward: the latents' part of the input alone decides."""
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        size = size_of(given)
        config = self.case.predictors(self.pipe)[0].config
        channels = config.get("out_channels") or config["in_channels"]
        x = self.family.unpack(self.pipe, given.get("hidden_states", given.get("sample")), size)[:, :channels]
        lines = x[:, :, self.skipped :].movedim(self.dim, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1], 1, 1).double()
        stage = self.video.sizes().index(lines.shape[-1])
        predicted = self.video(flat, self.time(given["timestep"]), stage).view(lines.shape).movedim(-1, self.dim)
        answer = torch.zeros_like(x)
        answer[:, :, self.skipped :] = -predicted if self.backwards else predicted
        answer = self.family.pack(self.pipe, answer, size)
        return (answer,) if given.get("return_dict") is False else SimpleNamespace(sample=answer)

    def time(self, told: Tensor) -> Tensor:
        """What the network is told, (B,) or (B, tokens), as one time in [0, 1]; a given picture's tokens are at 0."""
        told = told.double().reshape(len(told), -1).amax(dim=1) if told.ndim else told.double().reshape(1)
        assert bool((told == told[0]).all())
        if not self.flow:
            return told / 999
        return 1 - told / 1000 if self.backwards else told / 1000

    def errors(self) -> tuple[float, float, float]:
        """Of what the pipeline makes: the mean's and the covariance's largest error, and how far any line is off."""
        sizes = self.video.sizes()[::-1]
        rows = sum(sizes) + 1  # one row a Gaussian number, and a last row of zeros
        basis = torch.eye(rows, dtype=torch.float64)[:, :-1].split(sizes, dim=1)
        level = self.pipe.scheduler.pyramid.stages[-1].start_level
        middle = torch.zeros(sizes[0], dtype=torch.float64)
        start = basis[0]
        if level.alpha > 0:  # the schedule's last level still holds signal: start from that level's law
            mean, cov = self.video.law(len(sizes) - 1, level.alpha, level.sigma)
            start, middle = start @ torch.from_numpy(np.linalg.cholesky(cov)).T, torch.from_numpy(mean)
        whole = self._lines(basis[-1])
        generator = torch.Generator().manual_seed(0)
        self.scales = 0.5 + torch.rand(whole.narrow(self.dim, 0, 1)[:1].shape, generator=generator).double()
        first = self._skip_none(self._lines(start) * self.scales + self._lines(middle[None]))
        noises = iter([self._lines(part) * self.scales for part in basis[1:]])
        made = self._run(first, noises, rows)
        mean = made[-1]
        jacobian = (made[:-1] - mean) / self.scales
        expected = self._lines(torch.from_numpy(self.video.mean)[None])[0]
        one = jacobian.movedim(self.dim, -1)[:, 0, 0, 0].numpy()  # any line's: (rows - 1, length)
        off = (jacobian - jacobian.movedim(self.dim, -1)[:, :1, :1, :1].movedim(-1, self.dim)).abs().max()
        return (
            float((mean - expected).abs().max()),
            float(np.abs(one.T @ one - self.video.cov).max()),
            float(off),
        )

    def _lines(self, values: Tensor) -> Tensor:
        """(rows, length) along the axis -> (rows, C, t, h, w) without the skipped frames, alike on all lines."""
        t, h, w = self.family.latent_size(self.pipe, self.pixels())
        t += self.family.filling(self.pipe, self.pixels()) - self.skipped
        channels = self.case.predictors(self.pipe)[0].config
        count = channels.get("out_channels") or channels["in_channels"]
        shape = [len(values), count, t, h, w]
        shape[self.dim] = values.shape[1]
        view = [len(values), 1, 1, 1, 1]
        view[self.dim] = values.shape[1]
        return values.reshape(view).expand(shape)

    def _skip_none(self, x: Tensor) -> Tensor:
        """With zeros for the skipped frames."""
        return torch.cat([x.new_zeros(*x.shape[:2], self.skipped, *x.shape[3:]), x], dim=2)

    def _run(self, first: Tensor, noises: Iterator[Tensor], rows: int) -> Tensor:
        """The pipeline's latents without the skipped frames, float64."""

        def injected(shape: Any, generator: Any = None, device: Any = None, dtype: Any = torch.float32) -> Tensor:
            if self.skipped and shape[2] == self.skipped and self.alone:
                return torch.zeros(tuple(shape), dtype=dtype)  # what fills patches is led on by itself
            noise = next(noises)
            noise = noise if noise.shape[2] == shape[2] else self._skip_none(noise)
            assert tuple(noise.shape) == tuple(shape)
            return noise.to(dtype)

        family, pipe = self.family, self.pipe
        latents = family.pack(pipe, first.float(), tuple(first.shape[2:]))
        changes = {"guidance_scale": 1.0} if self.case.guided else {}
        with pytest.MonkeyPatch.context() as patch:
            for network in self.case.predictors(pipe):
                patch.setattr(network, "forward", self)
            patch.setattr(jump_module, "randn", injected)
            made = self.case.run(pipe, size=self.pixels(), batch=rows, latents=latents, generator=None, **changes)
        made = family.unpack(pipe, made, family.latent_size(pipe, self.pixels()))
        return made[:, :, self.skipped :].double()
