"""Trackers of runs that died and go on."""

import os

from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tpdiff.training.trackers import start_trackers


def test_a_step_logged_before_and_after_a_death_is_there_once(tiny, tmp_path, monkeypatch):
    config = tiny("log.trackers=[tensorboard]")
    # Runs begun within a second, whose processes sort against the order of their start.
    for process, step, resumed in [(999, 0, False), (1000, 0, True), (1001, 2, True)]:
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        accelerator = Accelerator(log_with="tensorboard", project_dir=str(tmp_path))
        start_trackers(accelerator, config, step, resumed)
        for number in (step + 1, step + 2, step + 3):
            accelerator.log({"loss": process + number}, step=number)
        accelerator.end_training()
    accumulator = EventAccumulator(str(tmp_path / "tpdiff"), size_guidance={"scalars": 0})
    accumulator.Reload()
    points = [(point.step, point.value) for point in accumulator.Scalars("loss")]
    assert points == [(1, 1001), (2, 1002), (3, 1004), (4, 1005), (5, 1006)]
