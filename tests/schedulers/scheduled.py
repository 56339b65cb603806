"""Real diffusers schedulers in all the ways that stages can wrap them, and the loop that a pipeline runs."""

import diffusers
import numpy as np
import pytest
import torch
from gaussian import GaussianVideo, autoregressive, jump_module, law_of

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.schedulers import PyramidScheduler, schedule_of

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCALED = {"EulerDiscreteScheduler", "HeunDiscreteScheduler"}  # whose latents are x_0 + κ ε
TIME = ((1, 1, 1), (2, 1, 1), (4, 1, 1))
SPACE = ((1, 1, 1), (1, 2, 2), (1, 4, 4))
BOTH = ((1, 1, 1), (2, 2, 2), (4, 4, 4))


def make(name: str, **config):
    """A scheduler of diffusers' by its class name."""
    return getattr(diffusers, name)(**config)


def staged(base, factors=TIME, *, causal_time=False, ends=None, starts=None, **options) -> PyramidScheduler:
    """`base` around a pyramid on its own noise schedule."""
    pyramid = Pyramid(schedule_of(base), factors, causal_time=causal_time, ends=ends, starts=starts)
    return PyramidScheduler(base, pyramid, **options)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def toy(x, t):
    """A made-up network that tells times apart; plain arithmetic only, so that no batch changes a bit of it."""
    bent = x / (1 + 0.1 * x * x)
    return 0.3 * bent + 0.2 * x.roll(1, dims=2) + 0.0005 * t * (0.4 - 0.1 * bent)


def run(scheduler, x, network=toy, **options):
    """What a pipeline does with its scheduler, from unit noise."""
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, return_dict=False, **options)[0]
    return x


def told(base, t: torch.Tensor) -> torch.Tensor:
    """A timestep as networks are told it -> time in [0, 1]."""
    count = base.config.num_train_timesteps
    if base.config.get("invert_sigmas"):
        return 1 - t.double() / count
    flow = schedule_of(base).name == "flow_matching"
    return t.double() / (count if flow else count - 1)


def cosine(last: float = 1.5, **config) -> dict:
    """A configuration whose first level is all but clean, so that no step has to bridge a gap to clean data."""
    angles = np.linspace(0.002, last, 1001)
    return {"trained_betas": (1 - np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2).tolist(), **config}


def scheduled_law(scheduler: PyramidScheduler, video: GaussianVideo, steps, *, sign=None, jump_noise=True):
    """Exact (mean, covariance) of the loop's output with the perfect network of `video`; see gaussian.py.

    Where the last level holds signal, the start is drawn from its true law. Where the scheduler's σ rises from 0 to 1
    (Mochi), the network's flow is the other way round, x0 - ε, unless `sign` says otherwise.
    """
    base, first = scheduler.base, video.pyramid.stages[-1].start_level
    sign = sign or (-1 if base.config.get("invert_sigmas") else 1)

    def network(x, t):
        return sign * video(x.double(), told(base, t).expand(len(x)), scheduler.stage).to(x.dtype)

    def whole(start):
        scheduler.set_timesteps(steps)
        return run(scheduler, start, network)

    true_start = isinstance(video.pyramid.schedule, VariancePreservingSchedule) and first.alpha > 0
    return law_of(video, whole, true_start=true_start, jump_noise=jump_noise, dtype=torch.float32)


def law_error(scheduler: PyramidScheduler, video: GaussianVideo, steps, **options) -> float:
    """Largest absolute error over the entries of the mean and the covariance."""
    mean, cov = scheduled_law(scheduler, video, steps, **options)
    return max(np.abs(mean - video.mean).max(), np.abs(cov - video.cov).max())


def law_after_jump(scheduler: PyramidScheduler, video: GaussianVideo, k: int):
    """Exact (mean, covariance) of γ_t x_0 + σ_t ε where the jump into stage k lands, and its level.

    What jumps has the exact law of stage k+1's clean end; the level is read off what the network is then told.
    """
    counts = [3] * len(video.pyramid)
    scheduler.restrict(k)
    scheduler.set_timesteps(counts)
    start = video.pyramid.schedule.level(told(scheduler.base, scheduler.timesteps[0]).item())
    scheduler.restrict(k + 1)
    scheduler.set_timesteps(counts)
    end = video.pyramid.stages[k + 1].end_level
    signal = end.alpha * video.downs[k + 1]
    cov = signal @ video.cov @ signal.T + end.sigma**2 * np.eye(len(signal))
    parts = len(video.downs[k + 1]), len(video.downs[k])
    basis, draws = torch.eye(sum(parts) + 1, dtype=torch.float64)[:, :-1].split(parts, dim=1)
    x = basis @ torch.from_numpy(np.linalg.cholesky(cov)).T + torch.from_numpy(signal @ video.mean)
    shape = video.pyramid.stage_shape((len(x), 1, *video.size), k + 1)
    scaled = (start.alpha, end.alpha) if type(scheduler.base).__name__ in SCALED else (1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump_module, "randn", lambda shape, *rest: draws.reshape(shape).float())
        out = scheduler.jump((x / scaled[1]).reshape(shape).float())
    out = (scaled[0] * out.double()).flatten(1).numpy()
    jacobian = (out[:-1] - out[-1]).T
    return out[-1], jacobian @ jacobian.T, start


def trained_on(scheduler: PyramidScheduler, whole: bool) -> Pyramid:
    """The pyramid whose stages start where sampling starts them: with `whole`, at the next noisier index."""
    stages, last = scheduler.pyramid.stages, len(scheduler) - 1
    starts = [np.ceil(stage.start * last - 1e-6) / last if whole else stage.start for stage in stages[:-1]]
    return Pyramid(
        scheduler.pyramid.schedule,
        scheduler.pyramid.factors,
        starts=starts,
        ends=[stage.end for stage in stages[1:]],
        causal_time=scheduler.pyramid.causal_time,
    )


def gaussian(scheduler: PyramidScheduler, size, correlation=0.8, scale=1.0) -> GaussianVideo:
    """A Gaussian video (T, H, W), correlated along each axis, as the scheduler's network was trained on it."""
    axes = [autoregressive(length, correlation)[1] for length in size]
    cov = scale**2 * np.kron(np.kron(axes[0], axes[1]), axes[2])
    mean = autoregressive(len(cov))[0]
    base = scheduler.base
    whole = not isinstance(scheduler.pyramid.schedule, FlowMatchingSchedule) and type(base).__name__ not in SCALED
    kind = base.config.get("prediction_type", "flow_prediction")
    return GaussianVideo(trained_on(scheduler, whole), mean, cov, kind, size[1:])


def grids(scheduler: PyramidScheduler, counts: list[int], **options) -> list[np.ndarray]:
    """The levels of every stage, coarsest first, each with its end."""
    found = []
    for k in range(len(counts) - 1, -1, -1):
        scheduler.restrict(k)
        scheduler.set_timesteps(counts, **options)
        found.append(scheduler.sigmas.double().numpy())
    scheduler.restrict(None)
    return found


def bounds(scheduler: PyramidScheduler) -> list[tuple[float, float]]:
    """Times where every stage starts and ends, coarsest first."""
    return [(stage.start, stage.end) for stage in scheduler.pyramid.stages][::-1]
