"""Autoencoders of images and of videos behind the same two functions."""

import pytest
import torch

from tpdiff.models.autoencoder import compression, decode_video, encode_video, load_autoencoder


def video(frames, height=32, width=16, batch=2):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_image_autoencoder_sees_one_frame_at_a_time(image_vae):
    vae = load_autoencoder(str(image_vae))
    clip = video(5)
    latents = encode_video(vae, clip)
    assert latents.shape == (2, 4, 5, 8, 4)
    assert latents.dtype == torch.float32
    for b in range(2):
        for t in range(5):
            wanted = (vae.encode(clip[b : b + 1, :, t]).latent_dist.mean - 0.1) * 0.7
            torch.testing.assert_close(latents[b : b + 1, :, t], wanted, rtol=0, atol=1e-5)
    decoded = decode_video(vae, latents)
    assert decoded.shape == clip.shape
    wanted = vae.decode(latents[1:, :, 3] / 0.7 + 0.1).sample
    torch.testing.assert_close(decoded[1:, :, 3], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (17, 5)])
def test_a_video_autoencoder_normalises_each_channel(video_vae, frames, latent):
    vae = load_autoencoder(str(video_vae))
    clip = video(frames)
    latents = encode_video(vae, clip)
    assert latents.shape == (2, 4, latent, 4, 2)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in ([0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.5, 1.0]))
    raw = vae.encode(clip).latent_dist.mode()
    torch.testing.assert_close(latents, (raw - mean) / std, rtol=0, atol=1e-5)
    decoded = decode_video(vae, latents)
    assert decoded.shape == clip.shape
    torch.testing.assert_close(decoded, vae.decode(raw).sample, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["image_vae", "video_vae"])
def test_latents_stay_float32_whatever_the_weights(kind, request):
    vae = load_autoencoder(str(request.getfixturevalue(kind)))
    wanted = encode_video(vae, video(5))
    vae = vae.to(torch.bfloat16)
    latents = encode_video(vae, video(5))
    assert latents.dtype == torch.float32
    assert (latents - wanted).norm() < 0.1 * wanted.norm()
    assert decode_video(vae, latents).dtype == torch.float32


def test_encoding_draws_nothing(image_vae):
    vae = load_autoencoder(str(image_vae))
    assert torch.equal(encode_video(vae, video(2)), encode_video(vae, video(2)))
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())


def test_compression_is_measured(image_vae, video_vae):
    assert compression(load_autoencoder(str(image_vae))) == (4, (1, 4, 4))
    assert compression(load_autoencoder(str(video_vae))) == (4, (4, 8, 8))


@pytest.mark.parametrize("what", ["absent", "empty", "another model"])
def test_a_folder_without_an_autoencoder_is_refused(tmp_path, what):
    folder = tmp_path / "vae"
    if what == "empty":
        folder.mkdir()
    if what == "another model":
        from diffusers import DiTTransformer2DModel

        model = DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=4)
        model.save_pretrained(folder, safe_serialization=True)
    with pytest.raises(ValueError) as caught:
        load_autoencoder(str(folder))
    assert str(folder) in str(caught.value)
    assert ("cannot encode" if what == "another model" else "no autoencoder") in str(caught.value)


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(ValueError, match="no autoencoder in 'frame-autoencodr': no such folder, and none of this name"):
        load_autoencoder("frame-autoencodr")


def test_pickled_weights_are_not_loaded(tmp_path, image_vae):
    (tmp_path / "config.json").write_bytes((image_vae / "config.json").read_bytes())
    torch.save(load_autoencoder(str(image_vae)).state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="no autoencoder"):
        load_autoencoder(str(tmp_path))
