"""Small files that are there whole or not at all, whether they can be, folders kept to one process, and prompts."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None

_held: set[Path] = set()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes beside `path` and, when safely on the disk, give it that name; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise ValueError, before the work whose result it is, for a file that `write_whole` could not write."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written to" if above.is_dir() else "is a file"
        raise ValueError(f"{path} cannot be written: {above} {why}")


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep a folder, which is made, to this process, by a lock on a file `.lock` in it; one process may do so several
    times at once. File systems and Windows, which know no such locks, hold nothing.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if fcntl is None or place in _held:  # closing the file a second time would give the lock up
        yield
        return
    with (place / ".lock").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, which may outlive this process
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process is writing to {folder}; wait for it, or end it") from None
        except OSError:
            pass
        _held.add(place)
        try:
            yield
        finally:
            _held.remove(place)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file (UTF-8), one a line, whichever editor wrote it; empty lines are none.

    Raises:
        ValueError: it holds none, or other text than UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other line ends may stand in prompts
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line")
    return prompts
