"""Latents that training makes of a video are those that the pipeline decodes: mean, deviation and scale are its own."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from tpdiff.families import find_family
from tpdiff.models.autoencoder import decode_video, encode_video


def smooth_video(frames, height, width):
    """(1, 3, T, H, W) in [-1, 1]."""
    noise = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (frames, height, width), mode="trilinear").clamp(-1, 1)


def with_statistics(pipe):
    """Where the autoencoder's statistics are weights, not all zeros and ones."""
    for name, buffer in pipe.vae.named_buffers():
        if name in ("latents_mean", "latents_std"):
            buffer.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    return pipe


def test_the_pipeline_decodes_them_as_we_do(case, monkeypatch):
    pipe = with_statistics(case.stageable())
    family, video = find_family(pipe), smooth_video(*case.narrow)
    latents = encode_video(pipe.vae, video)
    assert latents.shape[2:] == family.latent_size(pipe, case.narrow)
    filling = family.filling(pipe, case.narrow)
    whole = torch.cat([latents[:, :, :filling], latents], dim=2)

    def stay(output, timestep, sample, **options):
        return SchedulerOutput(prev_sample=sample)

    monkeypatch.setattr(pipe.scheduler, "step", stay)
    changes = {"latents": family.pack(pipe, whole, tuple(whole.shape[2:])), "output_type": "pt"}
    if case.kept:
        changes["image"] = (video[:, :, 0] + 1) / 2
    frames = case.run(pipe, num_inference_steps=2, **changes)
    ours = (decode_video(pipe.vae, latents) / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    torch.testing.assert_close(frames, ours, atol=1e-4, rtol=0)
    assert float(ours.std()) > 1e-3
    other = (decode_video(pipe.vae, 1.1 * latents + 0.1) / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    assert not torch.allclose(frames, other, atol=1e-3)
