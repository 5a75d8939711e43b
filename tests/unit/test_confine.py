"""What a process gives up is told where the kernel does not grant it."""

from __future__ import annotations

import ctypes
import errno
import resource
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from app.decoding import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")


def libc(landlock: int, restrict: int = 0, seccomp: int = 0) -> Any:
    """Answers as a kernel would that has not heard of what it refuses."""
    answers = {444: landlock, 445: 0, 446: restrict}
    return SimpleNamespace(syscall=lambda number, *_: told(answers[number]), prctl=lambda *_: told(seccomp))


def told(returned: int, why: int = errno.ENOSYS) -> int:
    if returned < 0:
        ctypes.set_errno(why)
    return returned


@pytest.mark.parametrize("kernel", [libc(-1), libc(0), libc(6, restrict=-1)])
def test_without_landlock_that_is_told(kernel: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confine.os, "close", lambda _: None)
    assert not confine._lock(kernel)


def test_what_there_is_too_little_for_is_not_done_without(monkeypatch: pytest.MonkeyPatch):
    """A decoder that had no descriptor for Landlock's rules would read files of strangers unconfined."""

    def scarce(*_: object) -> int:
        return told(-1, errno.EMFILE)

    with pytest.raises(OSError, match="Too many open files"):
        confine._lock(SimpleNamespace(syscall=lambda number, *rest: 6 if len(rest) == 3 and rest[0] is None else scarce()))
    with pytest.raises(OSError, match="Too many open files"):
        confine._filter(SimpleNamespace(prctl=scarce))


@pytest.mark.parametrize(("hard", "most"), [(100, 100), (1000, 500), (resource.RLIM_INFINITY, 500)])
def test_a_limit_that_is_lower_already_stays(hard: int, most: int, monkeypatch: pytest.MonkeyPatch):
    """It may not be raised: every file was taken for one that ends its reader."""
    limits = []
    monkeypatch.setattr(confine.resource, "getrlimit", lambda _: (50, hard))
    monkeypatch.setattr(confine.resource, "setrlimit", lambda what, to: limits.append((what, to)))
    confine._limit(resource.RLIMIT_FSIZE, 500)
    assert limits == [(resource.RLIMIT_FSIZE, (most, most))]


def test_seccomp_that_is_refused_or_not_written_for_this_machine_is_told(monkeypatch: pytest.MonkeyPatch):
    assert not confine._filter(libc(6, seccomp=-1))
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    assert not confine._filter(libc(6))
