"""Work ahead in threads: in order, bounded, and ended at once when nobody wants the rest."""

import subprocess
import sys
import threading

import pytest

from tpdiff.data import ahead, scan
from tpdiff.data import clips as clips_module
from tpdiff.data.ahead import Unwanted, check_wanted, in_threads
from tpdiff.data.clips import Geometry, verify
from tpdiff.data.decoding import decoded, opened

LONG = 60  # seconds after which a test gives up


class Blocking:
    """Work that blocks, but for the first item, until it is released."""

    first = 0

    def __init__(self):
        self.release, self.blocks = threading.Event(), threading.Semaphore(0)
        self.begun, self.ended, self.threads = [], [], set()

    def __call__(self, item):
        self.begun.append(item)
        self.threads.add(threading.current_thread())
        if item != self.first:
            self.blocks.release()
            self.release.wait(LONG)
        self.ended.append(item)
        return item

    def finish(self):
        """Let it go on and wait for its threads."""
        self.release.set()
        for thread in self.threads:
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.fixture
def blocking(monkeypatch):
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    work = Blocking()
    yield work
    work.finish()


def test_results_come_in_order_and_a_few_ahead(monkeypatch):
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    begun = []
    for number, result in enumerate(in_threads(lambda item: begun.append(item) or item * item, range(20))):
        assert result == number**2
        assert len(begun) <= number + 4
    assert sorted(begun) == list(range(20))


def test_an_error_comes_in_its_turn():
    results = in_threads(lambda item: 1 // (2 - item), range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_ended_early_it_waits_for_nothing_and_begins_nothing(blocking, end):
    results = in_threads(blocking, range(16))
    assert next(results) == 0
    for _ in range(2):  # both threads are at work
        assert blocking.blocks.acquire(timeout=LONG)
    if end == "close":
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert blocking.ended == [0] and len(blocking.begun) == 3
    blocking.finish()
    assert len(blocking.begun) == 3


def test_an_interrupt_between_two_videos_ends_the_others(blocking, digits, monkeypatch):
    found, inspect = scan(digits.folder), clips_module.inspect
    blocking.first = found.entries[0].path
    monkeypatch.setattr(clips_module, "inspect", lambda path: (blocking(path), inspect(path))[1])

    def progress(done, total):
        for _ in range(2):
            assert blocking.blocks.acquire(timeout=LONG)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        verify(found, Geometry(4, 32, 32), progress=progress)
    assert len(blocking.ended) == 1 and len(blocking.begun) == 3
    assert held.tb is not None  # what it passed through still stands, as it does until a command exits
    blocking.finish()
    assert len(blocking.begun) == 3


def test_a_decoding_under_way_ends_with_its_next_frame(blocking, digits):
    video = scan(digits.folder).entries[0].path
    outcomes = []

    def work(item):
        with opened(video) as container:
            frames = decoded(container)
            next(frames)
            blocking(item)
            try:
                outcomes.append(len(list(frames)))
            except Unwanted:
                outcomes.append("ended")
                raise

    results = in_threads(work, range(16))
    next(results)
    for _ in range(2):
        assert blocking.blocks.acquire(timeout=LONG)
    results.close()
    blocking.finish()
    assert outcomes == [15, "ended", "ended"]


def test_work_elsewhere_is_always_wanted():
    check_wanted()
    results = in_threads(lambda item: check_wanted(), range(3))
    assert list(results) == [None] * 3
    check_wanted()


def test_python_exits_while_work_is_under_way():
    program = (
        "import time\n"
        "from tpdiff.data.ahead import check_wanted, in_threads\n"
        "def work(item):\n"
        "    while item:\n"
        "        check_wanted()\n"
        "        time.sleep(0.01)\n"
        "for _ in in_threads(work, range(16)):\n"
        "    raise KeyboardInterrupt\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode != 0 and done.stderr.rstrip().endswith("KeyboardInterrupt")
