"""Motion of clips whose motion is known."""

import cv2
import numpy as np
import pytest
import torch

from tpdiff.metrics.motion import (
    Motion,
    cuts,
    follow,
    join_motion,
    measure_motion,
    optical_flow,
    step_lengths,
    visible,
)

SIZES = [(48, 64), (32, 48), (32, 32), (128, 160)]


def texture(x, y):
    """A smooth texture in [0, 255] at any place, in pixels; waves of 10 pixels and longer."""
    draw = np.random.default_rng(0)
    total = np.zeros(np.broadcast(x, y).shape)
    for _ in range(30):
        across, down, phase = *draw.uniform(-0.6, 0.6, 2), draw.uniform(0, 2 * np.pi)
        total += np.cos(across * x + down * y + phase)
    return (128 + 9 * total).clip(0, 255)


def clip(places, size=(48, 64)):
    """uint8 (3, T, H, W): the texture shifted to each place (x, y) in turn."""
    lines, columns = np.mgrid[: size[0], : size[1]]
    frames = [texture(columns - x, lines - y) for x, y in places]
    return torch.from_numpy(np.stack(frames).round().astype(np.uint8))[None].repeat(3, 1, 1, 1)


def steady(velocity, frames=6):
    return [(velocity[0] * t, velocity[1] * t) for t in range(frames)]


def one(video):
    """The figures of one clip."""
    return measure_motion(video[None]).means()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("velocity", [(1, 0), (0, -2), (0.6, 0.8), (-3, 4)], ids=str)
def test_a_texture_moves_as_fast_as_it_was_moved(size, velocity):
    figures = one(clip(steady(velocity), size))
    speed = np.hypot(*velocity)
    assert figures["magnitude"] == pytest.approx(speed, rel=0.1)
    assert figures["acceleration"] < 0.15 * speed
    assert figures["warping_error"] < 5e-4
    assert figures["warping_error"] < 0.1 * figures["flicker"] ** 2


@pytest.mark.parametrize("fast", [False, True])
def test_flow_points_where_the_texture_goes(fast):
    frames = clip(steady((2, -1), 2)).permute(1, 2, 3, 0).contiguous()
    flow = optical_flow(frames[:1], frames[1:], fast)
    assert flow.shape == (1, 2, 48, 64) and flow.dtype == torch.float32
    assert flow[0].mean((1, 2)).tolist() == pytest.approx([2, -1], abs=0.1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_moves_in_a_still_clip(size):
    figures = one(clip([(0, 0)] * 4, size))
    assert (figures["flicker"], figures["magnitude"], figures["acceleration"]) == (0, 0, 0)
    assert figures["warping_error"] < 1e-12  # float32 positions


def test_a_still_clip_of_one_colour_is_still_too():
    assert max(one(torch.full((3, 4, 32, 32), 77, dtype=torch.uint8)).values()) < 1e-12


def test_black_and_white_in_turn_is_the_most_that_can_flicker():
    frames = torch.zeros(3, 6, 32, 32, dtype=torch.uint8)
    frames[:, ::2] = 255
    figures = one(frames)
    assert figures["flicker"] == 1
    assert figures["warping_error"] == pytest.approx(1)
    frames[:, :] = 0
    frames[:, 3:] = 51  # one step of a fifth in five
    assert one(frames)["flicker"] == pytest.approx(0.2 / 5, rel=1e-6)


def test_jitter_is_less_smooth_than_steady_motion_of_the_same_speed():
    even = one(clip(steady((2, 0))))
    back_and_forth = one(clip([(2 * (t % 2), 0) for t in range(6)]))
    turned = one(clip([(0, 0), (2, 0), (2, 2), (4, 2), (4, 4), (6, 4)]))
    assert back_and_forth["magnitude"] == pytest.approx(even["magnitude"], rel=0.1)
    assert back_and_forth["acceleration"] == pytest.approx(4, rel=0.1)  # from +2 to -2
    assert turned["acceleration"] == pytest.approx(2 * np.sqrt(2), rel=0.1)  # from (2, 0) to (0, 2)
    assert even["acceleration"] < 0.1


def test_a_clip_that_jumps_once_has_a_cut_and_one_that_is_fast_has_none():
    jumps = clip([(0, 0), (1, 0), (2, 0), (5, 0), (6, 0), (7, 0), (8, 0)])
    assert one(jumps)["cut"] == 1
    steps = step_lengths(torch.stack([jumps, clip(steady((2, 0), 7))]))
    assert steps[0].tolist() == pytest.approx([1, 1, 3, 1, 1, 1], rel=0.15)
    assert steps[1].tolist() == pytest.approx([2] * 6, rel=0.1)
    assert one(clip(steady((3, 0))))["cut"] == one(clip(steady((1, 0))))["cut"] == one(clip([(0, 0)] * 4))["cut"] == 0


def test_a_cut_is_more_than_twice_the_median_step_and_a_tenth_of_a_pixel():
    steps = torch.tensor([[1.0, 1.0, 2.05, 1.0, 2.2], [0.01, 0.01, 0.1, 0.01, 0.13]])
    assert cuts(steps).tolist() == [[False] * 4 + [True]] * 2


def test_frames_out_of_order_cannot_be_explained_by_flow():
    smooth = clip(steady((2, 1), 8))
    shuffled = smooth[:, [3, 7, 0, 5, 1, 6, 2, 4]]
    assert one(shuffled)["warping_error"] > 20 * one(smooth)["warping_error"]
    noise = torch.randint(0, 256, smooth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert one(noise)["warping_error"] > 0.01


def test_a_moving_square_hides_what_it_covers():
    """Exact flows of a square that goes 3 pixels to the right over a ground at rest."""
    forward, backward = torch.zeros(1, 2, 24, 32), torch.zeros(1, 2, 24, 32)
    forward[0, 0, 8:16, 10:18] = 3
    backward[0, 0, 8:16, 13:21] = -3
    hidden = torch.zeros(1, 24, 32, dtype=torch.bool)
    hidden[0, 8:16, 18:21] = True
    assert torch.equal(visible(forward, backward), ~hidden)


def test_a_point_that_leaves_the_frame_is_out_of_sight():
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 3
    seen = visible(flow, -flow)
    assert seen[0, :, :13].all() and not seen[0, :, 13:].any()
    assert not visible(flow, flow).any()  # does not lead back


def test_following_a_flow_reads_between_pixels():
    pictures = (torch.arange(8.0)[None, :] + 10 * torch.arange(8.0)[:, None])[None, None]
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0], flow[:, 1] = 0.5, 0.25
    read, inside = follow(pictures, flow)
    assert torch.allclose(read[0, 0, :7, :7], pictures[0, 0, :7, :7] + 3, atol=1e-4)
    assert inside[0, :7, :7].all() and not inside[0, 7].any() and not inside[0, :, 7].any()


def test_a_pair_with_no_point_in_sight_counts_with_all_of_its_points(monkeypatch):
    """By flows that are given: between the first two frames, forth and back, both go to the right."""
    flows = torch.zeros(2, 2, 16, 16)
    flows[0, 0] = 3
    assert visible(flows, flows).flatten(1).float().mean(1).tolist() == [0, 1]
    monkeypatch.setattr("tpdiff.metrics.motion.optical_flow", lambda first, second: flows)
    frames = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    frames[:, 1:] = 255
    figures = one(frames)
    assert (figures["warping_error"], figures["acceleration"]) == pytest.approx((1 / 2, 3))


def test_batches_join_to_what_the_whole_gives_bit_for_bit():
    videos = torch.stack([clip(steady((1, 0), 4)), clip(steady((0, 3), 4)), clip([(0, 0)] * 4)])
    before = cv2.getNumThreads(), torch.get_num_threads()
    whole = measure_motion(videos)
    parts = [measure_motion(videos[[2]]), measure_motion(videos[:2])]
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before
    joined = join_motion([parts[1], parts[0]])
    assert isinstance(joined, Motion) and joined.clips == 3
    for name, values in whole.per_clip().items():
        assert values.shape == (3,) and values.dtype == torch.float64
        assert torch.equal(values, joined.per_clip()[name]), name
    assert whole.means()["magnitude"] == pytest.approx(float(whole.magnitude.sum()) / 3)
    assert whole.magnitude[2] == 0 and whole.magnitude[1] > 2 * whole.magnitude[0]


def test_what_cannot_be_measured_is_refused():
    video = clip(steady((1, 0), 4))[None]
    with pytest.raises(ValueError, match="at least 3 frames, got 1; nearest: 3"):
        measure_motion(video[:, :, :1])
    with pytest.raises(ValueError, match="uint8 video in"):
        measure_motion(video.float())
    with pytest.raises(ValueError, match=r"clips \(B, 3, T, H, W\), got \(3, 4, 48, 64\)"):
        measure_motion(video[0])
    with pytest.raises(ValueError, match=r"got \(1, 1, 4, 48, 64\)"):
        measure_motion(video[:, :1])
    with pytest.raises(ValueError, match="at least 8 pixels, got 48 x 7"):
        measure_motion(video[..., :7])
    with pytest.raises(ValueError, match="no motion figures"):
        join_motion([])
    assert measure_motion(video[..., :8, :8]).clips == 1
