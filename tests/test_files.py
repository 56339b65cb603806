"""Folders that one process keeps to itself, and files of prompts, whichever editor wrote them."""

import multiprocessing
import os
import signal

import pytest

from tpdiff.files import holding, read_prompts
from tpdiff.training.trainer import Trainer

spawned = multiprocessing.get_context("spawn")


def keep(folder, there):
    with holding(folder):
        there.send(None)
        signal.pause()


@pytest.fixture
def kept(tmp_path):
    """A folder that another process holds, and that process."""
    ours, theirs = spawned.Pipe()
    process = spawned.Process(target=keep, args=(tmp_path / "kept", theirs))
    process.start()
    assert ours.poll(120)
    yield tmp_path / "kept", process
    process.kill()
    process.join()


def test_a_folder_is_kept_to_a_process_until_it_ends(kept):
    folder, process = kept
    with (
        pytest.raises(ValueError, match=r"another process is writing to .*kept; wait for it, or end it"),
        holding(folder),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with holding(folder), holding(folder):
        pass


def test_a_run_that_goes_on_elsewhere_is_not_resumed(kept, tiny, tmp_path):
    folder, _ = kept
    piece = folder / "checkpoints" / ".step-00000002.partial"  # which the other process is writing
    piece.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="another process is writing to"):
        Trainer(tiny(), folder, resume=True)
    assert piece.is_dir()


def test_prompts_are_lines_whichever_editor_wrote_them(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red kite\r\n\r\n  a boat\u2028at sea \r\n".encode())
    assert read_prompts(path) == ["a red kite", "a boat\u2028at sea"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"prompts\.txt is not UTF-8 text"):
        read_prompts(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt; write one a line"):
        read_prompts(path)
