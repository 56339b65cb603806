"""Every refusal of VideoDiT names the value, the rule and what would be legal."""

import pytest
import torch

from tpdiff.models import VideoDiT

TINY = dict(in_channels=2, patch_size=(2, 4, 4), hidden_size=24, num_layers=0, num_attention_heads=2)
VIDEO, TIME = torch.zeros(2, 2, 4, 8, 8), torch.zeros(2)
TEXT, MASK = torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 25}, r"hidden_size 25 is not a multiple of num_attention_heads 2; nearest: 24 or 26"),
        ({"hidden_size": 8}, r"head size 4 .*even and at least 6"),
        ({"hidden_size": 14}, r"head size 7 .*even"),
        ({"patch_size": (1, 0, 1)}, r"patch_size \(1, 0, 1\) must be three positive"),
        ({"patch_size": (1, 2)}, r"patch_size \(1, 2\) must be three"),
        ({"stage_projections": True}, r"stage_projections needs num_stages"),
        ({"causal_time": True}, r"causal_time keeps 1 \+ n frames, which patches of 2 do not fill"),
        ({"temporal_overlap": 2}, r"temporal_overlap 2 .* at most half of a patch of 2 frames; nearest: 1"),
        ({"temporal_overlap": -1}, r"temporal_overlap -1 .*; nearest: 0"),
        ({"rope_modes": ("interpolate", "stretch", "interpolate")}, r"stretch.*interpolate, extrapolate"),
    ],
)
def test_a_network_that_cannot_be_built(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoDiT(**{**TINY, **options})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"hidden_states": torch.zeros(2, 2, 8, 8)}, r"\(2, 2, 8, 8\); expected \(B, C, T, H, W\)"),
        ({"hidden_states": torch.zeros(2, 3, 4, 8, 8)}, r"3 channels; this network takes 2"),
        ({"hidden_states": torch.zeros(2, 2, 3, 8, 8)}, r"frames T = 3 .*patch size 2; nearest: 2 or 4"),
        ({"hidden_states": torch.zeros(2, 2, 4, 10, 8)}, r"height H = 10 .*patch size 4; nearest: 8 or 12"),
        ({"hidden_states": torch.zeros(2, 2, 4, 8, 3)}, r"width W = 3 .*patch size 4; nearest: 4$"),
        ({"timestep": torch.zeros(3)}, r"timestep has shape \(3,\); expected .*\(2,\)"),
        ({"timestep": torch.tensor(0.5)}, r"timestep has shape \(\)"),
        ({"timestep": torch.tensor([1, 2])}, r"timestep has dtype torch.int64; expected floats"),
        ({"timestep": torch.tensor([0.5, 500.0])}, r"timestep runs from 0.5 to 500; it must lie in \[0, 1\]"),
        ({"timestep": torch.tensor([-0.5, 0.5])}, r"timestep runs from -0.5 to 0.5"),
        ({"timestep": torch.tensor([float("nan"), 0.5])}, r"timestep runs from nan"),
        ({"strides": (1, 1)}, r"strides \(1, 1\) must be three positive"),
        ({"strides": (1, 0, 1)}, r"strides \(1, 0, 1\) must be three positive"),
        ({"encoder_hidden_states": TEXT}, r"takes no text"),
        ({"encoder_attention_mask": MASK}, r"takes no text"),
        ({"class_labels": LABELS}, r"takes no class_labels"),
    ],
)
def test_arguments_of_a_network_without_conditions(inputs: dict, message: str) -> None:
    model = VideoDiT(**TINY)
    model(VIDEO, TIME)
    with pytest.raises(ValueError, match=message):
        model(**{"hidden_states": VIDEO, "timestep": TIME, **inputs})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"encoder_hidden_states": None}, r"needs encoder_hidden_states of shape \(B, L, 5\)"),
        ({"encoder_hidden_states": torch.zeros(2, 5)}, r"shape \(2, 5\); expected \(2, L, 5\)"),
        ({"encoder_hidden_states": torch.zeros(2, 3, 6)}, r"shape \(2, 3, 6\); expected \(2, L, 5\)"),
        ({"encoder_hidden_states": torch.zeros(1, 3, 5)}, r"shape \(1, 3, 5\); expected \(2, L, 5\)"),
        ({"encoder_attention_mask": MASK.long()}, r"torch.int64.*expected bool of shape \(2, 3\)"),
        ({"encoder_attention_mask": MASK[:, :2]}, r"shape \(2, 2\); expected bool of shape \(2, 3\)"),
        ({"class_labels": None}, r"needs class_labels of shape \(B,\), 0 .. 6, or 7 for no class"),
        ({"class_labels": LABELS[:1]}, r"shape \(1,\); expected integers of shape \(2,\)"),
        ({"class_labels": LABELS.float()}, r"class_labels is torch.float32"),
        ({"class_labels": torch.tensor([0, 8])}, r"from 0 to 8; legal: 0 .. 6, or 7 for no class"),
        ({"class_labels": torch.tensor([-1, 7])}, r"from -1 to 7"),
        ({"stage": None}, r"stage None must be one of 0 .. 2"),
        ({"stage": 3}, r"stage 3 must be one of 0 .. 2 \(0 is the finest\)"),
        ({"stage": -1}, r"stage -1"),
    ],
)
def test_arguments_of_a_network_with_conditions(inputs: dict, message: str) -> None:
    model = VideoDiT(**TINY, text_dim=5, num_classes=7, num_stages=3)
    legal = dict(
        hidden_states=VIDEO,
        timestep=TIME,
        encoder_hidden_states=TEXT,
        encoder_attention_mask=MASK,
        class_labels=LABELS,
        stage=2,
    )
    model(**legal)
    with pytest.raises(ValueError, match=message):
        model(**{**legal, **inputs})


def test_a_stage_means_nothing_to_a_network_that_embeds_none() -> None:
    model = VideoDiT(**TINY)
    assert torch.equal(model(VIDEO, TIME, stage=5).sample, model(VIDEO, TIME).sample)
