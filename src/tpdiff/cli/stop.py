"""Ctrl-C that loses nothing."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(request_stop: Callable[[], None], after: str = "this step") -> Iterator[None]:
    """While active, the first Ctrl-C (or SIGTERM) asks for a stop after the step under way; the second aborts."""
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print(f"stopping after {after}; again to abort", file=sys.stderr)
        request_stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
