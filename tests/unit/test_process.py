"""What a child process asks of the kernel."""

from __future__ import annotations

import os
import signal
import socket
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


STAND_BACK = """
import os, app.process as process
from pathlib import Path
process.stand_back()
group = Path("/proc/self/autogroup")
print(os.nice(0), group.read_text() if group.exists() else "nice 10")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's scheduler")
def test_who_stands_back_does_so_with_its_session():
    told = subprocess.run(
        [sys.executable, "-c", STAND_BACK], cwd=ROOT, capture_output=True, text=True, check=True, start_new_session=True
    ).stdout
    assert told.startswith("10 ") and "nice 10" in told


def run(program: str) -> str:
    command = [sys.executable, "-c", f"import os, app.process as process\n{program}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels choose otherwise")
def test_who_goes_first_when_memory_ends_never_goes_later_than_before():
    told = run("process.go_first(300); process.go_first(100); print(open('/proc/self/oom_score_adj').read())")
    assert int(told) == 300


def test_a_process_takes_all_descriptors_that_it_may_have():
    told = run("import resource as r; print(process.raise_descriptors(), *r.getrlimit(r.RLIMIT_NOFILE))").split()
    assert told[0] == told[1] and (told[1] == told[2] or told[2] == "-1")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a connection's end by a signal")
def test_a_process_dies_with_whom_it_is_tied_to_even_if_it_never_looks(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as master:
        master.bind(str(tmp_path / "s"))
        master.listen(1)
        program = f"import app.process as process\nprocess.die_with({str(tmp_path / 's')!r}); print('tied', flush=True)\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"tied\n"
            assert child.poll() is None
            master.close()
            assert child.wait(30) == -signal.SIGKILL
