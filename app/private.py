"""The server's private folder (sockets, black boxes, metrics), and the end of those whose servers were killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_PREFIX = "hearth-"
_LOCK = "supervisor.lock"
_MEMORY = Path("/dev/shm")  # noqa: S108  on Linux; our folder in it has a name of chance, and mode 0700
_ROOM = 32 << 20  # bytes: black boxes and metrics of many processes


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user reaches (mode 0700), until the block ends. Whatever ends this process lets go of its lock."""
    place = _place()
    for each in {place, Path(tempfile.gettempdir())}:
        _sweep(each)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    try:
        beside = folder / f".{_LOCK}"
        with beside.open("w") as lock:
            _held(lock)
            beside.replace(folder / _LOCK)  # under its name nobody ever finds it free while we live
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    """In memory, unless TMPDIR says otherwise: there is room when a disk is full. The first byte of a mapped page that has none
    ends the process that writes it (SIGBUS).
    """
    with suppress(OSError):
        if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM:
            return _MEMORY
    return Path(tempfile.gettempdir())


def discard(path: Path) -> None:
    """Remove one of its files, if that can be done: on a disk that became read-only it cannot."""
    with suppress(OSError):
        path.unlink()


def _sweep(temporary: Path) -> None:
    """Remove what a server left that could not do so itself."""
    for path in temporary.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), path.open("r+") as lock:  # another user's, or just gone
            if _held(lock):
                shutil.rmtree(path.parent, ignore_errors=True)


def _held(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
