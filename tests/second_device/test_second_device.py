"""Training, fine-tuning, sampling and whole studies on a device that is not the CPU, as `second_device.py` pretends:
nothing is left behind. It shows that tensors are where they are needed, not that a GPU computes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TRAINING = (
    "training/test_trainer.py::test_a_resumed_run_is_the_uninterrupted_one",
    "training/test_trainer.py::test_every_stage_in_every_step",
    "training/test_trainer.py::test_text_conditions_carry_the_encoder_s_states",
    "training/test_trainer.py::test_a_causal_video_autoencoder_makes_one_more_than_a_quarter",
    "training/test_trainer.py::test_what_trains_with_plain_stages_over_causal_latents_can_be_sampled",
    "training/test_validation.py::test_a_distance_is_named_and_has_its_floor",
    "training/test_latent_cache.py::test_training_is_the_same_with_and_without",
    "training/test_autoencoder_training.py::test_a_resumed_run_is_the_uninterrupted_one",
)
TUNING = (
    "families/test_tuning.py::test_a_resumed_run_is_the_uninterrupted_one",
    "families/test_tuning.py::test_a_network_may_follow_what_it_said_before",
    "families/test_tuning.py::test_validation_and_samples_are_of_the_tuned_pipeline",
)


STUDIES = (
    "evaluation/test_study.py::test_a_whole_study_stopped_and_continued",
    "evaluation/test_conversion.py::test_a_whole_study_stopped_and_continued",
)


@pytest.mark.parametrize("tests", [("families/there.py",), TRAINING, TUNING], ids=["sampling", "training", "tuning"])
def test_nothing_is_left_behind(tests):
    run_there(*tests, "-m", "not slow")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("test", STUDIES)
def test_a_whole_study_runs_there(test):
    run_there(test)


def run_there(*arguments):
    """Tests, named from the folder of all tests, in a process that has the second device."""
    options = ["-p", "second_device", "-p", "no:cacheprovider", "--tb=short"]
    paths = [str(HERE.parent / argument) if ".py" in argument else argument for argument in arguments]
    there = {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        env=os.environ | there,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
