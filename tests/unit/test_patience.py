"""What there is too little for is tried again for a while; what fails otherwise fails at once."""

from __future__ import annotations

import errno
import time

import pytest

from app import patience
from app.errors import TooBusy
from app.patience import patiently


class Work:
    """Fails so often with this error, and counts."""

    def __init__(self, often: int, number: int) -> None:
        self.often, self.number, self.done = often, number, 0

    def __call__(self) -> str:
        self.done += 1
        if self.done <= self.often:
            raise OSError(self.number, "so it is")
        return "done"

    async def later(self) -> str:
        return self()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
async def test_what_there_is_too_little_for_is_tried_again(number: int):
    assert await patiently(work := Work(3, number)) == "done"
    assert work.done == 4
    assert await patiently((work := Work(3, number)).later) == "done"
    assert work.done == 4


async def test_patience_ends():
    work = Work(1000, errno.EMFILE)
    with pytest.raises(TooBusy, match=r"Too many open files.*come back") as told:
        await patiently(work)
    assert work.done == patience.TIMES
    assert told.value.retry_after_s == 1.0


async def test_nobody_is_patient_beyond_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "PAUSE_S", 0.1)
    work = Work(1000, errno.EMFILE)
    with pytest.raises(TooBusy):
        await patiently(work, time.monotonic() + 0.05)
    assert work.done == 1


async def test_other_errors_are_not_tried_again():
    work = Work(1, errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        await patiently(work)
    assert work.done == 1
