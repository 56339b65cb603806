"""Trackers of a run: accelerate's, by name."""

import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from tpdiff.training.autoencoder_config import AutoencoderConfig
from tpdiff.training.config import Config
from tpdiff.training.load_config import flatten


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed; accelerate would pass over the latter in silence.

    Raises:
        ValueError: naming the tracker and those that can be had.
    """
    available = sorted(str(tracker.value) for tracker in get_available_trackers())
    for name in names:
        if name not in available:
            raise ValueError(f"log.trackers: {name!r} is unknown or not installed; installed: {', '.join(available)}")


def wait_for_the_next_second(folder: Path) -> None:
    """Let the clock pass the second in which the newest TensorBoard file below `folder` was begun.

    Such files are read in the order of their names, which hold that second and then the process: of two begun in
    the same second the later may be read first, and what it says is to be forgotten would stay.
    """
    begun = [int(path.name.split(".")[3]) for path in folder.rglob("events.out.tfevents.*")]
    while begun and max(begun) == int(time.time()):
        time.sleep(0.02)


def start_trackers(accelerator: Accelerator, config: Config | AutoencoderConfig, step: int, resumed: bool) -> None:
    """Start the trackers of a run that has done `step` steps.

    A run that died had logged steps after its last checkpoint, which a resumed run logs once more. TensorBoard is
    told to forget them, so its curves have every step once. Other trackers get a run of their own, which begins
    after the checkpoint; the abandoned steps stay in the one before.
    """
    if not config.log.trackers:
        return
    if resumed:
        wait_for_the_next_second(Path(accelerator.logging_dir))
        accelerator.init_trackers("tpdiff", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        return
    scalars = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in flatten(config.model_dump())}
    accelerator.init_trackers("tpdiff", config=scalars)
