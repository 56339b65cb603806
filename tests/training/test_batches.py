"""The loader's processes: what ends them, what does not, and what becomes of their errors."""

import multiprocessing
import subprocess

import pytest

from tpdiff.data import ClipDataset, VideoError
from tpdiff.training.batches import open_batches


def opened(clips):
    """A stream that has begun, and its two processes."""
    before = multiprocessing.active_children()
    batches = open_batches(ClipDataset(clips, frames=8, height=16, width=16, split="train"), 2, workers=2)
    next(batches)
    return batches, [process for process in multiprocessing.active_children() if process not in before]


def terminate_from_elsewhere(processes):
    """As a launcher does, which tells all processes of a run."""
    subprocess.run(["kill", "-TERM", *(str(process.pid) for process in processes)], check=True)


def test_workers_leave_terminations_to_the_main_process(clips):
    batches, workers = opened(clips)
    terminate_from_elsewhere(workers)
    for _ in range(12):  # more than were ready
        next(batches)
    assert [worker.exitcode for worker in workers] == [None, None]
    workers[0].terminate()  # as Python does with daemons at its exit, and waits for them
    workers[0].join(60)
    assert workers[0].exitcode == 0


def test_workers_end_with_their_loader(clips):
    batches, workers = opened(clips)
    terminate_from_elsewhere(workers)
    del batches
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_as_it_was_raised(clips, tmp_path, workers):
    for path in sorted(clips.glob("train/*.mp4"))[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = ClipDataset(tmp_path, frames=8, height=16, width=16, cache="none", require_captions=False)
    paths = [video.entry.path for video in dataset.videos]
    for path in paths:
        path.unlink()
    with pytest.raises(VideoError) as caught:
        next(open_batches(dataset, 2, workers))
    assert caught.value.path in paths and caught.value.reason == "no such file"
    assert str(caught.value) == f"{caught.value.path}: no such file"
