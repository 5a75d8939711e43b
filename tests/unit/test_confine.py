"""What a process gives up is told where the kernel does not grant it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from app.decoding import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")


def libc(landlock: int, restrict: int = 0, seccomp: int = 0) -> Any:
    """Answers as a kernel would."""
    answers = {444: landlock, 445: 0, 446: restrict}
    return SimpleNamespace(syscall=lambda number, *_: answers[number], prctl=lambda *_: seccomp)


@pytest.mark.parametrize("kernel", [libc(-1), libc(0), libc(6, restrict=-1)])
def test_without_landlock_that_is_told(kernel: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confine.os, "close", lambda _: None)
    assert not confine._lock(kernel)


def test_seccomp_that_is_refused_or_not_written_for_this_machine_is_told(monkeypatch: pytest.MonkeyPatch):
    assert not confine._filter(libc(6, seccomp=-1))
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    assert not confine._filter(libc(6))
