"""Room on the disk: what says that there is none left, and what a job holds of it that nobody needs. No torch."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from app.tuning.archive import remove

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# As torch, safetensors and SQLite put it, each in an exception of its own.
_NO_ROOM_WORDS = ("No space left on device", "database or disk is full")
_UNFINISHED = ("data", ".prepared.part", "model")


def is_full(error: BaseException) -> bool:
    """Whether it came of a full disk or quota."""
    return any(
        (isinstance(one, OSError) and one.errno in _NO_ROOM) or any(words in str(one) for words in _NO_ROOM_WORDS)
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
