"""The stage-wise objective (TPDiff Algorithm 2), of which plain diffusion training is the case of one stage."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdiff.pyramid.alignment import ALONE, Processes, align
from tpdiff.pyramid.noise import Generators, randn
from tpdiff.pyramid.schedule import FlowMatchingSchedule, Schedule, VariancePreservingSchedule
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.targets import check_per_stage, check_prediction_type
from tpdiff.pyramid.told import check_policy
from tpdiff.sampling.loop import Denoiser
from tpdiff.training.config import Config, TrainConfig


def as_drawn(t: Tensor, stage: int) -> Tensor:
    """Times that a network can be told whatever they are."""
    return t


@dataclass(frozen=True)
class Convention:
    """What a network is asked and what it answers.

    Attributes:
        pyramid: its stages.
        prediction_type: what it predicts.
        times: (drawn times (B,), stage) -> those that it can be told.
        given: latent frames at the beginning that it is given, so that nothing is predicted there.
    """

    pyramid: Pyramid
    prediction_type: str
    times: Callable[[Tensor, int], Tensor] = as_drawn
    given: int = 0


@dataclass(frozen=True)
class StageLoss:
    """A micro-batch's loss.

    Attributes:
        loss: scalar, mean over elements and samples.
        stage: the stage it was taken at.
        positions: latent positions (t, h, w) of all clips together; a token is a patch of them.
        alignment_gain: share of the data-noise distance that alignment removed, 0 without it.
    """

    loss: Tensor
    stage: int
    positions: int
    alignment_gain: float


def build_pyramid(config: Config) -> Pyramid:
    """The pyramid of a run; the vanilla method is the pyramid of one stage.

    Raises:
        ValueError: illegal stages, or a prediction type that cannot be sampled.
    """
    schedule: Schedule = FlowMatchingSchedule()
    if config.diffusion.schedule == "ddim":
        schedule = VariancePreservingSchedule()
        if config.diffusion.zero_terminal_snr:
            schedule = schedule.zero_terminal_snr()
    elif config.diffusion.zero_terminal_snr:
        raise ValueError(
            "diffusion.zero_terminal_snr belongs to schedule ddim; flow matching ends in pure noise anyway"
        )
    pyramid = staged(config, schedule, bool(config.pyramid.causal_time))
    check_prediction_type(config.diffusion.prediction, pyramid.stages[-1].start_level)
    return pyramid


def staged(config: Config, schedule: Schedule, causal_time: bool) -> Pyramid:
    """The configured stages on a noise schedule; the vanilla method's is one.

    Raises:
        ValueError: illegal stages, or a timestep policy that they cannot have.
    """
    stages = {} if config.train.method == "vanilla" else config.pyramid.model_dump()
    pyramid = Pyramid(schedule, **{**stages, "causal_time": causal_time})
    check_policy(config.train.timestep_policy, pyramid)
    if config.train.target == "per_stage":
        check_per_stage(schedule)
    return pyramid


def draw_stage(pyramid: Pyramid, weights: Sequence[float] | None, generator: torch.Generator) -> int:
    """One stage, drawn by weights given **coarsest first** (uniform if None)."""
    if len(pyramid) == 1:
        return 0
    shares = torch.tensor(weights[::-1] if weights is not None else [1.0] * len(pyramid))
    return int(torch.multinomial(shares, 1, generator=generator))


def draw_times(batch: int, density: str, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """u in (0, 1), float64 (B,), by the timestep density: "uniform" or "logit_normal" (mean 0, deviation 1)."""
    if isinstance(generator, Sequence):
        return torch.cat([draw_times(1, density, one) for one in generator])
    if density == "logit_normal":
        return torch.randn(batch, generator=generator, dtype=torch.float64).sigmoid()
    return torch.rand(batch, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)


def stage_loss(
    denoise: Denoiser,
    convention: Convention,
    clean: Tensor,
    coarse: Tensor | None,
    stage: int,
    captions: Sequence[Hashable],
    config: TrainConfig,
    generator: torch.Generator | Sequence[torch.Generator],
    original: Denoiser | None = None,
    processes: Processes = ALONE,
) -> StageLoss:
    """The loss of one micro-batch at one stage (TPDiff Algorithm 2; MATH 2, 3, 6).

    Args:
        denoise: the network with its conditions, with gradients.
        convention: what it is asked and answers.
        clean: clean latents or pixels at stage k's size, (B, C, T, H, W).
        coarse: the same at stage k + 1's; None for the coarsest.
        stage: k.
        captions: one a clip, for alignment within equal captions.
        config: alignment, timestep density, target.
        generator: one, or one a clip; every draw comes from it, on the CPU.
        original: the network before training, whose answers are followed as far as `config.distillation` says.
        processes: those among which the noises are assigned.
    """
    noise, gain = draw_noise(clean, captions, config, generator, processes)
    u = draw_times(len(clean), config.timestep_density, generator)
    errors = sample_errors(denoise, convention, clean, coarse, stage, noise, u, config, original)
    return StageLoss(errors.mean(), stage, clean[:, 0].numel(), gain)


def sample_errors(
    denoise: Denoiser,
    convention: Convention,
    clean: Tensor,
    coarse: Tensor | None,
    stage: int,
    noise: Tensor,
    u: Tensor,
    config: TrainConfig,
    original: Denoiser | None = None,
) -> Tensor:
    """The loss of every clip, (B,), at given noise and times.

    Args:
        noise: of `clean`'s shape.
        u: where in the stage, in (0, 1), 0 the clean end: float64 (B,).

    The others are `stage_loss`'s.
    """
    pyramid = convention.pyramid
    t = convention.times(pyramid.times(u, stage), stage).to(clean.device, torch.float32)
    pair = pyramid.pair(clean, coarse, noise, stage)
    target = pair.target(t, convention.prediction_type, per_stage=config.target == "per_stage")
    noisy = pair.at(t)
    prediction = denoise(noisy, t, stage).float()[:, :, convention.given :]
    error = (prediction - target[:, :, convention.given :]).square().flatten(1).mean(1)
    if original is not None:
        with torch.no_grad():
            said = original(noisy, t, stage).float()[:, :, convention.given :]
            if config.target == "per_stage":  # the original's flow is per unit of σ
                said = said * (pyramid.stages[stage].start_level.sigma - pyramid.stages[stage].end_level.sigma)
        error = error + config.distillation * (prediction - said).square().flatten(1).mean(1)
    return error * loss_weight(pyramid.schedule, t, config.loss_space, config.loss_floor)


def loss_weight(schedule: Schedule, t: Tensor, space: str | None, floor: float = 0.05) -> Tensor | float:
    """What turns the squared error of x̂_0 at times t (B,) into that of another prediction type at the same x_t.

    With ε̂ = (x_t - γ x̂_0) / σ, an error of x̂_0 is γ/σ as large in ε, (γ² + σ²)/σ in v and (γ + σ)/σ in the flow.
    Networks with patches of many pixels do well to say x_0, which fills a small part of their space, and noise, which
    fills all of it, only by implication (arXiv 2511.13720). The divisor σ counts as no less than `floor`.
    """
    if space is None:
        return 1.0
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    factor = {"epsilon": alpha, "v_prediction": alpha**2 + sigma**2, "flow_prediction": alpha + sigma}[space]
    return (factor / sigma.clamp(min=floor)).square().float()


def draw_noise(
    clean: Tensor,
    captions: Sequence[Hashable],
    config: TrainConfig,
    generator: Generators,
    processes: Processes = ALONE,
) -> tuple[Tensor, float]:
    """Noise for clips (B, ...), aligned as configured, and the share of distance that alignment removed."""
    if config.alignment == "none":
        return randn(clean.shape, generator, clean.device), 0.0
    if config.alignment == "knn":
        batch, *rest = clean.shape
        noise = randn((batch, config.knn_candidates, *rest), generator, clean.device).transpose(0, 1)
    else:
        noise = randn(clean.shape, generator, clean.device)
    condition = captions if config.align_within_condition else None
    aligned = align(clean, noise, config.alignment, condition, processes)
    return aligned.noise, aligned.reduction
