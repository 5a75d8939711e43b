"""The server's private folder (sockets, black boxes, metrics), and the end of those whose servers were killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_PREFIX = "hearth-"
_LOCK = "supervisor.lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user reaches (mode 0700), until the block ends. Whatever ends this process lets go of its lock."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        beside = folder / f".{_LOCK}"
        with beside.open("w") as lock:
            _held(lock)
            beside.replace(folder / _LOCK)  # under its name nobody ever finds it free while we live
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
