"""A cache whose making is killed again and again is, byte for byte, the one that was made in one go."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tpdiff.cli import main
from tpdiff.training.cache import make_cache
from tpdiff.training.load_config import dump_config

PATIENCE = 300  # seconds until a test gives up waiting
forks = multiprocessing.get_context("forkserver")


@pytest.fixture
def config(encoding):
    return encoding("data.starts=8", "data.stages=pixel")


@pytest.fixture
def whole(config, tmp_path):
    """The cache made in one go, and the seconds that took when everything was loaded."""
    make_cache(config, tmp_path / "first", shards=8)
    started = time.monotonic()
    make_cache(config, tmp_path / "whole", workers=2, shards=8)
    seconds = time.monotonic() - started
    assert contents(tmp_path / "whole") == contents(tmp_path / "first")
    return contents(tmp_path / "whole"), seconds


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def assert_nothing_half(out, expected):
    """Every shard and receipt under its own name is whole."""
    for name, content in contents(out).items():
        if not name.startswith(".") and name != "cache.json":
            assert content == expected[name], name


def kill_a_writer(config, out, delay, chance):
    """Make the cache and kill one of its processes after a while; whether that came in time."""
    failed = []

    def run():
        try:
            make_cache(config, out, workers=2, shards=8)
        except ChildProcessError as error:
            failed.append(error)

    others = multiprocessing.active_children()
    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + delay
    while thread.is_alive() and time.monotonic() < until:
        time.sleep(0.001)
    writers = [process for process in multiprocessing.active_children() if process not in others]
    if writers:
        chance.choice(writers).kill()
    thread.join(PATIENCE)
    return bool(failed)


def killed_writers(config, whole, folder, kills, seed=0):
    expected, seconds = whole
    chance, done, caches = random.Random(seed), 0, 0
    while done < kills:
        out = folder / f"cache{caches}"
        while kill_a_writer(config, out, chance.uniform(0, 1.5 * seconds), chance):
            assert_nothing_half(out, expected)
            done += 1
        assert contents(out) == expected
        caches += 1


def test_writers_that_are_killed_leave_the_same_shards(config, whole, tmp_path):
    killed_writers(config, whole, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_writers_killed_fifty_times_leave_the_same_shards(config, whole, tmp_path):
    killed_writers(config, whole, tmp_path, 50, seed=1)


def test_a_termination_of_all_its_processes_ends_the_command_as_ctrl_c_does(config, whole, tmp_path):
    """Launchers and clusters send it to the whole group; the writers finish their shards."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "cache"
    recipe.write_text(dump_config(config))
    arguments = [sys.executable, "-m", "tpdiff", "cache", recipe, "--out", out, "--workers", "2", "--shards", "8"]
    command = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(command.pid)
    while command.poll() is None and count_writers(watched) < 2:
        time.sleep(0.005)
    os.killpg(command.pid, signal.SIGTERM)
    said = command.communicate(timeout=PATIENCE)[1]
    assert command.returncode == 130, said
    assert "stopping after these shards" in said and "stopped; continue with: tpdiff cache" in said
    assert 0 < len(list(out.glob("*.tar"))) < 8
    assert make_cache(config, out).complete
    assert contents(out) == whole[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_command_killed_fifty_times_makes_the_same_shards(config, whole, tmp_path):
    """The whole command, by SIGKILL, at random moments after its writers are there; no process of it stays."""
    expected, seconds = whole
    recipe, chance = tmp_path / "recipe.yaml", random.Random(2)
    recipe.write_text(dump_config(config))
    done, caches = 0, 0
    while done < 50:
        out = tmp_path / f"killed{caches}"
        while kill_the_command(recipe, out, chance.uniform(0, 1.2 * seconds)):
            assert_nothing_half(out, expected)
            done += 1
        assert contents(out) == expected
        caches += 1


def count_writers(command):
    """The children of its children: they are forked from a server."""
    try:
        return len(command.children(recursive=True)) - len(command.children())
    except psutil.NoSuchProcess:
        return 0


def is_alive(process):
    """It may end between two looks."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_the_command(recipe, out, delay):
    """Whether the command was killed before it was done."""
    arguments = ["cache", str(recipe), "--out", str(out), "--workers", "2", "--shards", "8"]
    run = forks.Process(target=main, args=(arguments,))
    run.start()
    command = psutil.Process(run.pid)
    while run.exitcode is None and count_writers(command) < 2:
        time.sleep(0.005)
    time.sleep(delay)
    if run.exitcode is not None:
        assert run.exitcode == 0
        return False
    processes = command.children(recursive=True) if command.is_running() else []
    os.kill(run.pid, signal.SIGKILL)
    run.join(PATIENCE)
    until = time.monotonic() + 30
    while left := [process for process in processes if is_alive(process)]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.01)
    return True
