"""Patches and the embedding of time; memory kept between steps."""

import sys

import pytest
import torch

from tpdiff.models import keep_freed_memory
from tpdiff.models.embeddings import blended, overlapping, patchify, timestep_embedding, unpatchify


def test_a_token_is_the_content_of_one_patch() -> None:
    video = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8)
    tokens = patchify(video, (2, 3, 4))
    assert tokens.shape == (2, 2 * 2 * 2, 3 * 24)
    assert torch.equal(tokens[1, 5].view(3, 2, 3, 4), video[1, :, 2:4, 0:3, 4:8])  # token 5 is (1, 0, 1)
    assert torch.equal(unpatchify(tokens, (4, 6, 8), (2, 3, 4)), video)


def test_patchify_takes_a_view_that_is_not_contiguous() -> None:
    video = torch.randn(2, 4, 3, 6, 8).transpose(1, 2)
    assert torch.equal(patchify(video, (2, 3, 4)), patchify(video.contiguous(), (2, 3, 4)))


def test_windows_overlap_and_the_ends_repeat() -> None:
    video = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 3, 8, 4, 5)
    windows = overlapping(video, 4, 2)
    assert windows.shape == (2, 3, 16, 4, 5)
    assert windows[1, 2, :, 3, 4].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 7, 7]
    assert overlapping(video, 4, 0) is video and blended(video, 4, 0) is video


@pytest.mark.parametrize(("frames", "overlap"), [(4, 2), (4, 1), (2, 1), (5, 2), (1, 0)])
def test_what_all_windows_say_alike_is_kept(frames: int, overlap: int) -> None:
    video = torch.randn(2, 3, 3 * frames, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(blended(overlapping(video, frames, overlap), frames, overlap), video)


def test_where_two_windows_speak_they_are_cross_faded() -> None:
    """The first of two windows says 0 all the way, the second 1: a straight line between them."""
    said = torch.cat((torch.zeros(8), torch.ones(8))).view(1, 1, 16, 1, 1)
    assert blended(said, 4, 2).flatten().tolist() == [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1]


def test_time_is_embedded_in_float32_at_frequencies_from_one_to_a_ten_thousandth() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    for dtype in (torch.float64, torch.float32):
        embedding = timestep_embedding(t.to(dtype), 8)
        assert embedding.dtype == torch.float32
        angles = 1000 * t[:, None] * 10.0 ** -torch.arange(4)
        torch.testing.assert_close(embedding, torch.cat((angles.cos(), angles.sin()), 1), rtol=1e-4, atol=1e-4)


def test_freed_memory_is_kept_where_the_allocator_allows() -> None:
    assert keep_freed_memory() in ((True, False) if sys.platform.startswith("linux") else (False,))
