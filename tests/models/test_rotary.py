"""Rotary positions: one axis for all stages, relative, remembered."""

import pytest
import torch

from tpdiff.models.rotary import Rotary, rotary_angles, split_pairs

SIZE, DIM = (4, 2, 3), 16
CPU = torch.device("cpu")


def rotated(rope: Rotary, x: torch.Tensor, size: tuple[int, int, int], strides: tuple[float, float, float]):
    cos, sin = rope.table(size, strides, CPU, x.dtype)
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


@pytest.mark.parametrize(
    ("head_dim", "split"), [(6, (1, 1, 1)), (16, (4, 2, 2)), (64, (12, 10, 10)), (128, (22, 21, 21))]
)
def test_every_pair_has_an_axis(head_dim: int, split: tuple[int, int, int]) -> None:
    assert split_pairs(head_dim) == split


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_tokens_turn_by_the_mean_angle_of_those_they_replace(axis: int) -> None:
    fine = list(SIZE)
    fine[axis] *= 2
    strides = [1.0, 8.0, 8.0]
    angles = rotary_angles(fine, strides, DIM).view(*fine, DIM // 2)
    pairs = angles.unflatten(axis, (-1, 2)).mean(axis + 1)
    strides[axis] *= 2
    torch.testing.assert_close(rotary_angles(SIZE, strides, DIM), pairs.flatten(0, 2))


def test_an_extrapolated_axis_ignores_its_stride_and_no_other_does() -> None:
    modes = ("interpolate", "extrapolate", "extrapolate")
    full, space, time = (
        rotary_angles(SIZE, strides, DIM, modes=modes) for strides in ((1, 1, 1), (1, 4, 2), (2, 1, 1))
    )
    torch.testing.assert_close(full, space)
    assert not torch.allclose(full, time)


def test_only_the_time_axis_is_causal() -> None:
    causal = rotary_angles(SIZE, (2, 2, 2), DIM, causal_time=True).view(*SIZE, -1)
    plain = rotary_angles(SIZE, (2, 2, 2), DIM).view(*SIZE, -1)
    torch.testing.assert_close(causal[..., 4:], plain[..., 4:])
    torch.testing.assert_close(causal[:, 0, 0, 0], torch.tensor([0, 1.5, 3.5, 5.5], dtype=torch.float64))


def test_rotation_keeps_lengths_and_products_depend_on_differences_alone() -> None:
    rope = Rotary(DIM)
    q, k = torch.randn(2, 8, DIM, dtype=torch.float64).unbind()
    q, k = q[:1].expand(8, -1), k[:1].expand(8, -1)
    turned = [rotated(rope, x, (8, 1, 1), (1.0, 1.0, 1.0)) for x in (q, k)]
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1))
    scores = turned[0] @ turned[1].T
    for offset in range(-6, 7):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0].std() > 1e-2


def test_the_table_is_the_complex_rotation() -> None:
    x = torch.randn(24, DIM, dtype=torch.float64)
    first, second = x.chunk(2, -1)
    angles = rotary_angles(SIZE, (1, 2, 3), DIM)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    got = rotated(Rotary(DIM), x, SIZE, (1.0, 2.0, 3.0))
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1))


def test_tables_are_remembered_and_one_made_for_inference_serves_training() -> None:
    rope, key = Rotary(DIM, theta=123.0), (SIZE, (1.0, 1.0, 1.0), CPU, torch.float32)
    with torch.inference_mode():
        made = rope.table(*key)
    assert not made.is_inference()
    assert rope.table(*key) is made
    assert Rotary(DIM, theta=124.0).table(*key) is not made


def test_the_frequencies_of_an_axis_fall_from_one_towards_one_over_theta() -> None:
    angles = rotary_angles((2, 1, 1), (1, 1, 1), DIM, theta=16.0)
    turn = angles[1] - angles[0]
    torch.testing.assert_close(turn, torch.tensor([1, 1 / 2, 1 / 4, 1 / 8, 0, 0, 0, 0], dtype=torch.float64))
