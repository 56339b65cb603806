"""The processes that make the shards of a cache. One that dies, or its parent's death, leaves no half shard."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tpdiff.data.buckets import Buckets
from tpdiff.data.shard_files import EMPTY_PROMPT
from tpdiff.files import write_whole
from tpdiff.threads import usable_cores
from tpdiff.training.batches import free_worker, terminations_wait
from tpdiff.training.config import Config
from tpdiff.training.pipeline_encoder import open_encoder
from tpdiff.training.shard_maker import ShardMaker, Source

AWAKE = 0.5  # seconds between two updates where nothing happens


@dataclass(frozen=True)
class Update:
    """What happened since the last: shards that are up to date now, files done, clips encoded."""

    shards: tuple[str, ...] = ()
    files: int = 0
    encoded: int = 0


def make_shards(
    config: Config,
    buckets: Buckets,
    out: Path,
    plan: Mapping[str, Sequence[Source]],
    workers: int,
    stop: Callable[[], bool],
    empty_prompt: bool = False,
) -> Generator[Update, None, None]:
    """Make the shards of a plan, each in one of `workers` processes; ends early, after those under way, on a stop.
    The first process encodes the empty caption too, into `EMPTY_PROMPT`, where that is wanted. A process in which
    nothing is new opens no encoder.

    Raises:
        ValueError, OSError: what a worker could not do (a full disk, say).
        torch.OutOfMemoryError: the encoders and a clip do not fit into a GPU, of which fewer workers may share one.
        ChildProcessError: a worker died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # beginning, it would let terminations through
    waiting = list(plan.items())[::-1]
    team: dict[Connection, Any] = {}
    try:
        for number in range(min(workers, len(plan))):
            ours, theirs = context.Pipe()
            told = (config, buckets, out, number, empty_prompt and number == 0, theirs)
            team[ours] = context.Process(target=_work, args=told, daemon=True)
            with terminations_wait():  # in the server of the processes, too, with which they would die
                team[ours].start()
            theirs.close()
            with _noticing_death(team[ours]):
                ours.send(waiting.pop())
        busy = list(team)
        while busy:
            shards, files, encoded = [], 0, 0
            for pipe in wait(busy, AWAKE):
                assert isinstance(pipe, Connection)
                with _noticing_death(team[pipe]):
                    message = pipe.recv()
                if isinstance(message, Exception):
                    raise message
                shard, more_files, more_clips = message
                files, encoded = files + more_files, encoded + more_clips
                if shard is None:
                    continue
                shards.append(shard)
                if waiting and not stop():
                    with _noticing_death(team[pipe]):
                        pipe.send(waiting.pop())
                else:
                    busy.remove(pipe)
            yield Update(tuple(shards), files, encoded)
    finally:
        for process in team.values():
            process.kill()
            process.join()


def usual_workers(config: Config) -> int:
    """How many processes encode where nobody says: one a GPU, since each holds the encoders; where there is none, one,
    or for small encoders of our own recipes one for each core that this process may use.
    """
    devices = torch.cuda.device_count()
    return devices or (usable_cores() if config.pretrained is None else 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that the same clip gives the same bits on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _noticing_death(process: Any) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise ChildProcessError(
            f"a process that encodes died (exit code {process.exitcode}); what it had finished is kept"
        ) from None


def _work(config: Config, buckets: Buckets, out: Path, number: int, empty_prompt: bool, pipe: Connection) -> None:
    """Make the shards that the pipe names, and tell it of progress, until it closes."""
    free_worker(number)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.backends.cudnn.deterministic = True
    devices = torch.cuda.device_count()
    try:
        with one_thread():
            encoder = cache(partial(open_encoder, config, f"cuda:{number % devices}" if devices else "cpu"))
            if empty_prompt and (empty := encoder().states("")) is not None:
                write_whole(out / EMPTY_PROMPT, empty)
            maker = ShardMaker(config.data, encoder, buckets, out, lambda files, clips: pipe.send((None, files, clips)))
            while True:
                name, sources = pipe.recv()
                maker.make(name, sources)
                pipe.send((name, 0, 0))
    except (EOFError, ConnectionError):
        pass  # nobody listens any more
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        pipe.send(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
