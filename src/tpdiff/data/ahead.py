"""Work on many items in threads, a few ahead of whoever takes the results, which ends at once when nobody does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tpdiff.threads import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_mine = threading.local()  # `ended`, of a thread of `in_threads`


class Unwanted(Exception):
    """Ends work whose result nobody waits for any more."""


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Results in order. A few are worked out ahead, never all of them, so that memory stays bounded.

    Closed, or ended by an error, it begins no further item and waits for none. What is under way ends where it next
    asks `check_wanted`: Python waits for it before it exits.
    """
    workers, ended = min(8, usable_cores()), threading.Event()
    pool = ThreadPoolExecutor(workers, initializer=setattr, initargs=(_mine, "ended", ended))
    waiting = iter(items)
    try:
        pending = deque(pool.submit(work, item) for item in islice(waiting, 2 * workers))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(waiting, 1))
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)


def check_wanted() -> None:
    """Raise Unwanted in a thread of `in_threads` that has ended. Long work asks again and again."""
    ended: threading.Event | None = getattr(_mine, "ended", None)
    if ended is not None and ended.is_set():
        raise Unwanted
