"""Room on the disk: what says that there is none left, who has a folder, and what is held that nobody needs. No torch."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.tuning.archive import remove

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# As torch, safetensors and SQLite put it, each in an exception of its own.
_NO_ROOM_WORDS = ("No space left on device", "database or disk is full")
_READ_ONLY_WORDS = ("attempt to write a readonly database",)
_YOUNG_S = 3600.0  # an upload takes no longer
_UNFINISHED = ("data", ".prepared.part", "model")
_KEPT = ("log.txt", "lock")


def is_full(error: BaseException) -> bool:
    """Whether it came of a full disk or quota."""
    return _says(error, _NO_ROOM, _NO_ROOM_WORDS)


def is_read_only(error: BaseException) -> bool:
    """Whether it came of a disk that may not be written to."""
    return _says(error, {errno.EROFS}, _READ_ONLY_WORDS)


def _says(error: BaseException, numbers: set[int], words: tuple[str, ...]) -> bool:
    return any(
        (isinstance(one, OSError) and one.errno in numbers) or any(some in str(one) for some in words)
        for one in with_causes(error)
    )


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: PyTorch's writer covers the disk's with one of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def give_back(folder: Path) -> None:
    """Remove what a tuner was in the middle of making in its job's folder: the next one makes it anew."""
    for name in _UNFINISHED:
        remove(folder / name)


def clear(folder: Path) -> None:
    """Remove all of a finished job but its log: what it was made from is no more needed, and may be gigabytes."""
    with suppress(OSError):  # somebody forgets the job just now
        for one in list(folder.iterdir()):
            with suppress(OSError):  # what is left, the next foreman removes
                if one.is_dir():
                    remove(one)
                elif one.name not in _KEPT:
                    one.unlink()


def is_young(path: Path) -> bool:
    """Whether somebody may just be making it."""
    return time.time() - path.stat().st_mtime < _YOUNG_S


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Have the folder for oneself; whoever dies lets go. Raises BlockingIOError if another has it and one shall not `wait`."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sweep(home: Path) -> None:
    """Remove what a `hearth tune` left that was killed: its folder is old, and nobody holds it."""
    for folder in home.glob("tune-*"):
        try:
            if is_young(folder / "lock"):
                continue
            with held(folder, wait=False):
                remove(folder)
        except OSError:  # somebody has it, or it is none of ours
            continue
