"""An evaluation's figures are those of the metrics, of the clips that it names."""

import pytest

from tpdiff.data import write_video
from tpdiff.evaluation.made import folder_clips
from tpdiff.evaluation.quality import evaluate
from tpdiff.metrics import Reference, frechet_distance, frechet_interval, kernel_distance
from tpdiff.metrics.clips import load_clips
from tpdiff.metrics.motion import measure_motion


@pytest.mark.parametrize("windows", [1, 2])
def test_an_evaluation_says_what_the_metrics_say(clips, tmp_path, windows):
    """Of videos of 8 frames, one clip or two each, which are drawn together then."""
    reference = Reference.fit(clips, frames=8 // windows, height=16, width=16)
    (tmp_path / "made").mkdir()
    for i, clip in enumerate(load_clips(reference.train[:4], reference.geometry)):  # not those of the floor
        write_video(tmp_path / "made" / f"{i}.mp4", clip.permute(1, 2, 3, 0), 8)
    made = folder_clips(tmp_path / "made", reference.geometry, 4, seed=1)
    found = evaluate(reference, made, tmp_path / "cache", rounds=20, seed=3)
    real, features = reference.real, reference.project(made.load(0, 4))
    interval = frechet_interval(real, features, 20, 3, reference.videos)
    assert (interval == frechet_interval(real, features, 20, 3)) == (windows == 1)
    assert found.distance.as_dict() == pytest.approx(interval.as_dict()) and 0 <= interval.low < interval.high
    assert found.kernel_distance == pytest.approx(kernel_distance(real, features))
    assert (found.clips, found.real_clips, found.floor_clips) == (4, 6 * windows, 4)
    held = reference.held[:4]
    assert found.floor == pytest.approx(frechet_distance(real, held)) and abs(found.floor - interval.value) > 1
    assert found.kernel_floor == pytest.approx(kernel_distance(real, held)) and found.kernel_floor != 0
    motion = {"real": load_clips(reference.clips, reference.geometry), "made": made.load(0, 4)}
    flicker = {side: measure_motion(videos).means()["flicker"] for side, videos in motion.items()}
    assert found.figures["flicker"] == pytest.approx(flicker) and abs(flicker["real"] - flicker["made"]) > 1e-4
