"""What a child process asks of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SLICE = "import app.process as p; p.take_short_turns(); print([line for line in open('/proc/self/sched') if 'se.slice' in line])"


@pytest.mark.skipif(not Path("/proc/self/sched").exists(), reason="this kernel does not tell")
def test_short_turns_are_asked_for_and_priority_stays():
    told = subprocess.run([sys.executable, "-c", SLICE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 12):
        pytest.skip("older kernels have no turns to choose")
    assert "100000" in told


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    import ctypes

    from app import process

    monkeypatch.setattr(process.platform, "machine", lambda: "riscv128")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("a system call of unknown number"))
    process.take_short_turns()
