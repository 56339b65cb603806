"""The stream of training batches: from any sample on, with or without loader processes."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice, repeat
from typing import Any

from torch.utils.data import DataLoader, Dataset

from tpdiff.data import ClipDataset, DataError, ShardDataset, VideoError, collate, stream_indices
from tpdiff.training.latents import KeptFirst

Samples = ClipDataset | KeptFirst | ShardDataset
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def open_batches(
    dataset: Samples,
    sizes: int | Iterable[int],
    workers: int,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """Batches of one size or of these, `collate`d, of the samples start, start + 1, ... that fall to this process.

    Which samples they hold does not depend on `workers`, the number of loader processes (0: none). On Linux these are
    forks, whatever Python's default: children of this process, which share the decoded videos and die with it.
    A batch of shards holds clips of one size, on all processes.

    Raises:
        VideoError, DataError, OSError: with the next batch, what its clips could not be read for; as it was raised,
            whichever process read them.
    """
    if isinstance(sizes, int):
        if isinstance(dataset, ShardDataset):
            dataset = dataset.grouped(sizes * processes)
        sizes = repeat(sizes)
    loader = DataLoader(
        _Telling(dataset),
        batch_sampler=_numbers(sizes, stream_indices(start, None, rank, processes)),
        collate_fn=_collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=free_worker,
        persistent_workers=workers > 0,
    )
    with terminations_wait() if workers else nullcontext():
        return _raising(iter(loader))


@contextmanager
def terminations_wait() -> Iterator[None]:
    """Have SIGTERM wait meanwhile, and in processes begun meanwhile until they deal with it; on Linux alone."""
    if sys.platform != "linux":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def free_worker(index: int) -> None:
    """In a loader's process: Ctrl-C and terminations, which a launcher sends to all processes of a run, are the main
    process's business. On Linux it ends with that process, however that came to its end, or when told to by it alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    main = multiprocessing.parent_process()
    assert main is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # and so in every later thread
    threading.Thread(target=_end_when_told, args=(main.pid,), daemon=True).start()
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _end_when_told(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)


class _Telling(Dataset[Any]):
    """A dataset whose errors come as samples. Of one that is raised in its process, a loader passes on the text and the
    traceback alone.
    """

    def __init__(self, dataset: Samples):
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | Exception:
        try:
            return self.dataset[index]
        except (VideoError, DataError, OSError) as error:
            return error


def _collate(samples: list[dict[str, Any] | Exception]) -> dict[str, Any] | Exception:
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    return errors[0] if errors else collate([sample for sample in samples if isinstance(sample, dict)])


def _raising(batches: Iterator[dict[str, Any] | Exception]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _numbers(sizes: Iterable[int], indices: Iterator[int]) -> Iterator[list[int]]:
    for size in sizes:
        yield list(islice(indices, size))
