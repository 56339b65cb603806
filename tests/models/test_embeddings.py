"""Patches and the embedding of time; memory kept between steps."""

import sys

import torch

from tpdiff.models import keep_freed_memory
from tpdiff.models.embeddings import patchify, timestep_embedding, unpatchify


def test_a_token_is_the_content_of_one_patch() -> None:
    video = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8)
    tokens = patchify(video, (2, 3, 4))
    assert tokens.shape == (2, 2 * 2 * 2, 3 * 24)
    assert torch.equal(tokens[1, 5].view(3, 2, 3, 4), video[1, :, 2:4, 0:3, 4:8])  # token 5 is (1, 0, 1)
    assert torch.equal(unpatchify(tokens, (4, 6, 8), (2, 3, 4)), video)


def test_patchify_takes_a_view_that_is_not_contiguous() -> None:
    video = torch.randn(2, 4, 3, 6, 8).transpose(1, 2)
    assert torch.equal(patchify(video, (2, 3, 4)), patchify(video.contiguous(), (2, 3, 4)))


def test_time_is_embedded_in_float32_at_frequencies_from_one_to_a_ten_thousandth() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    for dtype in (torch.float64, torch.float32):
        embedding = timestep_embedding(t.to(dtype), 8)
        assert embedding.dtype == torch.float32
        angles = 1000 * t[:, None] * 10.0 ** -torch.arange(4)
        torch.testing.assert_close(embedding, torch.cat((angles.cos(), angles.sin()), 1), rtol=1e-4, atol=1e-4)


def test_freed_memory_is_kept_where_the_allocator_allows() -> None:
    assert keep_freed_memory() in ((True, False) if sys.platform.startswith("linux") else (False,))
