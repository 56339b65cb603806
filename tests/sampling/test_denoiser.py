"""A network with its conditions as a denoiser: guidance, null conditions, dtypes."""

import pytest
import torch

from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.sampling.denoiser import guided_denoiser

PYRAMID = Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (2, 1, 1)])


def speaking(**options):
    """A small network whose last layer is not silent; `calls` records what it is given."""
    torch.manual_seed(0)
    network = VideoDiT(patch_size=(1, 8, 8), hidden_size=24, num_layers=1, num_attention_heads=2, **options)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.15)
    network.calls = []
    network.register_forward_pre_hook(
        lambda m, args, kwargs: m.calls.append(kwargs | {"x": args[0], "t": args[1]}), with_kwargs=True
    )
    return network.eval()


def clip(frames=4, batch=2):
    return torch.randn(batch, 3, frames, 8, 8, generator=torch.Generator().manual_seed(1))


T = torch.tensor([0.3, 0.8])


def labels(*values):
    return {"class_labels": torch.tensor(values)}


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_leads_from_the_null_through_the_conditional(scale):
    network = speaking(num_classes=3)
    x = clip()
    denoise = guided_denoiser(network, PYRAMID, labels(0, 2), labels(3, 3), scale)
    got = denoise(x, T, 0)
    assert len(network.calls) == 1
    assert network.calls[0]["x"].shape[0] == 4
    conditional = network(x, T, **labels(0, 2), return_dict=False)[0]
    null = network(x, T, **labels(3, 3), return_dict=False)[0]
    assert not torch.allclose(conditional, null, atol=1e-3)
    torch.testing.assert_close(got, null + scale * (conditional - null), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("null", "scale"), [(None, 5.0), (labels(3, 3), 1.0), (None, 1.0)])
def test_without_guidance_the_network_is_called_on_the_batch_alone(null, scale):
    network = speaking(num_classes=3)
    got = guided_denoiser(network, PYRAMID, labels(0, 2), null, scale)(clip(), T, 0)
    assert [call["x"].shape[0] for call in network.calls] == [2]
    assert torch.equal(got, network(clip(), T, **labels(0, 2), return_dict=False)[0])


@torch.no_grad()
def test_a_network_without_conditions_has_nothing_to_guide():
    network = speaking()
    got = guided_denoiser(network, PYRAMID, {}, {}, 3.0)(clip(), T, 0)
    assert [call["x"].shape[0] for call in network.calls] == [2]
    assert torch.equal(got, network(clip(), T, return_dict=False)[0])


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 1])
def test_the_network_is_told_its_stage(stage):
    network = speaking(num_stages=2)
    guided_denoiser(network, PYRAMID, {})(clip(), T, stage)
    assert network.calls[0]["strides"] == [(1, 1, 1), (2, 1, 1)][stage]
    assert network.calls[0]["stage"] == stage
    plain = speaking()
    guided_denoiser(plain, PYRAMID, {})(clip(), T, stage)
    assert "stage" not in plain.calls[0]


@torch.no_grad()
def test_weights_in_bf16_are_met_in_bf16_and_answered_in_float32():
    network = speaking(text_dim=8).to(torch.bfloat16)
    text = {
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2)),
        "encoder_attention_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    }
    null = {
        "encoder_hidden_states": torch.zeros(2, 5, 8),
        "encoder_attention_mask": torch.zeros(2, 5, dtype=torch.bool),
    }
    got = guided_denoiser(network, PYRAMID, text, null, 1.5)(clip(), T, 0)
    told = network.calls[0]
    assert got.dtype == torch.float32
    assert told["x"].dtype == told["encoder_hidden_states"].dtype == torch.bfloat16
    assert told["encoder_attention_mask"].dtype == torch.bool
    assert told["t"].dtype == torch.float32, "time must not be rounded"
    assert text["encoder_hidden_states"].dtype == torch.float32
    full = guided_denoiser(network.float(), PYRAMID, text, null, 1.5)(clip(), T, 0)
    assert (got - full).norm() < 0.05 * full.norm()


@torch.no_grad()
def test_labels_keep_their_integers_in_bf16():
    network = speaking(num_classes=300).to(torch.bfloat16)
    guided_denoiser(network, PYRAMID, labels(257, 259), labels(300, 300), 2.0)(clip(), T, 0)
    assert network.calls[0]["class_labels"].tolist() == [300, 300, 257, 259]
