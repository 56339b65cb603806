"""The bar that comes and goes: on a terminal only, as often as there is something to do."""

import io
import sys

from tpdiff.cli.bars import passing_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def as_terminal(monkeypatch):
    """Standard error, from here on."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_it_comes_and_goes_with_the_work(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with passing_bar("reading videos") as tell:
        assert terminal.getvalue() == ""
        for _ in range(2):
            for done in (1, 2, 3):
                tell(done, 3)
            assert sys.stderr is terminal  # what follows writes to it as before
            print("between", file=sys.stderr)
        tell(1, 3)
    assert sys.stderr is terminal
    shown = terminal.getvalue()
    assert shown.count("between\n") == 2
    assert "reading videos" in shown and "3/3" in shown.split("between")[0] and "1/3" in shown.split("between")[2]


def test_it_is_not_shown_elsewhere(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with passing_bar("reading videos", hidden=True) as tell:
        tell(1, 3)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with passing_bar("reading videos") as tell:
        tell(1, 3)
    assert sys.stderr.getvalue() == ""
