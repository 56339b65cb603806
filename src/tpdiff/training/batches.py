"""The stream of training batches: from any sample on, with or without loader processes."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from tpdiff.data import ClipDataset, ShardDataset, StreamSampler, collate

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def open_batches(
    dataset: ClipDataset | ShardDataset,
    batch_size: int,
    workers: int,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """Endless batches, `collate`d, of the samples start, start + 1, ... that fall to this process.

    Which samples they hold does not depend on `workers`, the number of loader processes (0: none). On Linux these are
    forks, whatever Python's default: children of this process, which share the decoded videos and die with it.
    A batch of shards holds clips of one size, on all processes.
    """
    if isinstance(dataset, ShardDataset):
        dataset = dataset.grouped(batch_size * processes)
    return iter(
        DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=StreamSampler(start, None, rank, processes),
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            worker_init_fn=free_worker,
            persistent_workers=workers > 0,
        )
    )


def free_worker(index: int) -> None:
    """In a loader's process: Ctrl-C is the main process's business, a termination ends it, and so does the main
    process's death, however that came.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
