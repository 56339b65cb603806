"""Our own video autoencoder: causal, of any count of frames 1 + rn, and a diffusers model like any other."""

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL

from tpdiff.models.autoencoder import compression, decode_video, encode_video, load_autoencoder
from tpdiff.models.video_autoencoder import VideoAutoencoder

TINY = {"latent_channels": 4, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 2}


def video(frames, seed=0):
    return torch.rand(1, 3, frames, 32, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stirred(**options):
    """A network whose every weight says something: blocks begin as the identity."""
    torch.manual_seed(0)
    network = VideoAutoencoder(**(TINY | options)).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.requires_grad_(False)


@pytest.mark.parametrize(("ratio", "patch"), [(4, 8), (2, 16), (8, 4), (1, 8)])
@pytest.mark.parametrize("n", range(5))
def test_one_and_r_n_frames_come_back_and_no_latent_sees_what_follows(n, ratio, patch):
    network = stirred(time_patch=ratio, patch_size=patch)
    whole = video(1 + 4 * ratio)
    part = whole[:, :, : 1 + ratio * n]
    latents = network.encode(part).latent_dist.mode()
    assert latents.shape == (1, 4, 1 + n, 32 // patch, 16 // patch)
    torch.testing.assert_close(latents, network.encode(whole).latent_dist.mode()[:, :, : 1 + n], rtol=0, atol=1e-5)
    decoded = network.decode(latents).sample
    assert decoded.shape == part.shape
    longer = network.decode(network.encode(whole).latent_dist.mode()).sample
    torch.testing.assert_close(decoded, longer[:, :, : part.shape[2]], rtol=0, atol=1e-5)


def test_what_changes_a_frame_changes_its_latents_and_those_after():
    network, clip = stirred(), video(13)
    other = clip.clone()
    other[:, :, 5:9] *= -1
    before, after = (network.encode(x).latent_dist.mode() for x in (clip, other))
    changed = (before - after).abs().amax((0, 1, 3, 4)) > 1e-3
    assert changed.tolist() == [False, False, True, True]


def test_it_works_as_any_video_autoencoder(tmp_path):
    network = stirred(latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    assert compression(network) == (4, (4, 8, 8))
    assert compression(stirred(time_patch=1)) == (4, (1, 8, 8))
    network.save_pretrained(tmp_path, safe_serialization=True)
    loaded = load_autoencoder(str(tmp_path))
    assert isinstance(loaded, VideoAutoencoder)
    assert loaded.config.latents_std == [2.0] * 4
    assert torch.equal(loaded(video(5)), network(video(5)))
    (posterior,) = loaded.encode(video(5), return_dict=False)
    assert posterior.mean.shape == posterior.std.shape == (1, 4, 2, 4, 2)


@pytest.mark.parametrize("network", [stirred(), AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)])
def test_what_moves_it_for_its_work_is_asked_as_for_any_autoencoder(network):
    """As model offload does, which moves a network to the GPU once it is called."""
    moved = []

    class Note(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            moved.append(type(module))
            return args, kwargs

    add_hook_to_module(network, Note())
    decode_video(network, encode_video(network, video(5)))
    assert moved == [type(network)] * 2


def test_weights_of_another_network_are_refused(tmp_path):
    stirred().save_pretrained(tmp_path, safe_serialization=True)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"decoder_layers": 2', '"decoder_layers": 3'))
    with pytest.raises(ValueError, match="no autoencoder"):
        load_autoencoder(str(tmp_path))


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 16), (1, 3, 5, 30, 16), (1, 3, 5, 32, 12)])
def test_a_size_that_patches_do_not_fill_is_refused(shape):
    with pytest.raises(ValueError, match="multiples of 8 pixels"):
        stirred().encode(torch.zeros(shape))


def test_it_begins_as_the_principal_components():
    clips = [video(9, seed)[0] for seed in range(3)]
    for clip in clips:  # three patterns and little else
        clip *= 0.05
        clip[0] += torch.rand(9, 1, 1) - 0.5
        clip[1] += torch.linspace(-1, 1, 8).repeat(4)[:, None] * torch.rand(1)
    network = VideoAutoencoder(**TINY)
    network.start_from_components(clips)
    rows = torch.cat([network.patches(c[None]).transpose(0, 1).flatten(1).T for c in clips]).double().numpy()
    mean = rows.mean(0)
    _, _, axes = np.linalg.svd(rows - mean, full_matrices=False)
    best = (rows - mean) @ axes[:4].T @ axes[:4] + mean
    with torch.no_grad():
        made = torch.cat([network.patches(network(c[None])).transpose(0, 1).flatten(1).T for c in clips]).numpy()
        latents = torch.cat([network.encode(c[None]).latent_dist.mode().flatten(2) for c in clips], dim=2)
    first = rows.shape[0] // 3 // 3  # of each clip's rows: the first frame, whose copies are averaged on the way back
    keep = np.concatenate([np.arange(i * 24 + first, (i + 1) * 24) for i in range(3)])
    np.testing.assert_allclose(made[keep], best[keep], atol=1e-4)
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(4), rtol=0, atol=1e-3)


def test_pictures_are_videos_of_one_frame():
    network, pictures = stirred(time_patch=4), video(5)[0].transpose(0, 1)
    latents = network.encode(pictures).latent_dist.mode()
    assert latents.shape == (5, 4, 4, 2)
    assert torch.equal(latents, network.encode(pictures.unsqueeze(2)).latent_dist.mode().squeeze(2))
    assert torch.equal(network.decode(latents).sample, network.decode(latents.unsqueeze(2)).sample.squeeze(2))


def test_without_reach_in_time_every_frame_is_left_to_itself():
    network, clip = stirred(time_patch=1, time_kernel=1), video(5)
    apart = network.encode(clip[0].transpose(0, 1)).latent_dist.mode()
    torch.testing.assert_close(network.encode(clip).latent_dist.mode()[0], apart.transpose(0, 1), rtol=0, atol=1e-5)


def test_folded_statistics_are_in_the_weights(tmp_path):
    network = stirred(latents_mean=[0.3, -1.0, 0.0, 2.0], latents_std=[2.0, 0.5, 1.0, 3.0])
    before, deviation = encode_video(network, video(5)), network.encode(video(5)).latent_dist.std
    shown = decode_video(network, before)
    network.fold_statistics()
    network.fold_statistics()  # there is nothing more to fold
    assert network.config.latents_mean is None
    torch.testing.assert_close(encode_video(network, video(5)), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decode_video(network, before), shown, rtol=1e-4, atol=1e-5)
    scale = torch.tensor([2.0, 0.5, 1.0, 3.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(network.encode(video(5)).latent_dist.std, deviation / scale, rtol=1e-4, atol=1e-6)
    network.save_pretrained(tmp_path, safe_serialization=True)
    torch.testing.assert_close(encode_video(load_autoencoder(str(tmp_path)), video(5)), before, rtol=1e-4, atol=1e-5)
