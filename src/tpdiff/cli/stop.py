"""Ctrl-C that loses nothing."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(
    request_stop: Callable[[], None], after: str = "this step", launched: bool = False
) -> Iterator[None]:
    """While active, the first Ctrl-C (or SIGTERM) asks for a stop after the step under way; the second aborts.

    A process that a launcher started may be told by it, by the terminal and by the cluster, and never aborts: the
    launcher ends it if it takes too long.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked and not launched:
            raise KeyboardInterrupt
        if not asked:
            print(f"stopping after {after}" + ("" if launched else "; again to abort"), file=sys.stderr)
        asked = True
        request_stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
