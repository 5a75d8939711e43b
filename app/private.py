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

from app.settings import inherited_environment

_PREFIX = "hearth-"
_LOCK = "supervisor.lock"
_MEMORY = Path("/dev/shm")  # noqa: S108  on Linux; our folder in it has a name of chance, and mode 0700
# logind (RemoveIPC) removes all that a user has there when the last session of that one ends; not of root and the system's users.
_LOGIND, _LAST_OF_THE_SYSTEM = Path("/run/systemd/seats"), 999
_ROOM = 32 << 20  # bytes: black boxes and metrics of many processes


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user reaches (mode 0700), until the block ends. Whatever ends this process lets go of its lock."""
    for place in (_MEMORY, Path(tempfile.gettempdir())):
        _sweep(place)
    folder = _made()
    try:
        beside = folder / f".{_LOCK}"
        with beside.open("w") as lock:
            _held(lock)
            beside.replace(folder / _LOCK)  # under its name nobody ever finds it free while we live
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made() -> Path:
    """In memory, unless TMPDIR says otherwise: there is room when a disk is full. The first byte of a mapped page that has none
    ends the process that writes it (SIGBUS).
    """
    with suppress(OSError):
        lasts = os.getuid() <= _LAST_OF_THE_SYSTEM or not _LOGIND.exists()
        if lasts and "TMPDIR" not in inherited_environment() and shutil.disk_usage(_MEMORY).free >= _ROOM:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY))
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


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
