"""Bars on standard error: how far a command is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

Tell = Callable[[int, int], None]
"""(done, in all)."""


@contextmanager
def progress_bars(transient: bool = True) -> Iterator[Callable[[str], Tell]]:
    """A maker of bars, each with its name, count and time left; `transient` ones are gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=transient) as shown:

        def bar(name: str) -> Tell:
            task = shown.add_task(name, total=None)
            return lambda done, total: shown.update(task, completed=done, total=total)

        yield bar


@contextmanager
def progress_bar(name: str, hidden: bool) -> Iterator[Tell | None]:
    """One bar that stays; none where the output is for a machine."""
    if hidden:
        yield None
        return
    with progress_bars(transient=False) as bar:
        yield bar(name)


@contextmanager
def passing_bar(name: str, hidden: bool = False) -> Iterator[Tell]:
    """A bar that comes with the first thing done and goes with the last, as often as there is more to do; on a terminal
    only.
    """
    hidden = hidden or not sys.stderr.isatty()
    with ExitStack() as shown:
        bars: list[Tell] = []

        def tell(done: int, total: int) -> None:
            if hidden:
                return
            if not bars:
                bars.append(shown.enter_context(progress_bars())(name))
            bars[0](done, total)
            if done == total:
                shown.close()
                bars.clear()

        yield tell
