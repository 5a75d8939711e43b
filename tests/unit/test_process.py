"""What a child process asks of the kernel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app import process
from tests.conftest import ROOT

CHILDREN = (
    "app.decoding.nursery",
    "app.engine.choosing",
    "app.engine.nursery",
    "app.process",
    "app.tuning.foreman",
    "app.tuning.process",
    "app.web.process",
)


def test_every_end_of_a_process_has_words():
    told = [process.ending(status) for status in (0, 3, -signal.SIGKILL, -40)]
    assert told == ["exit status 0", "exit status 3", "SIGKILL", "signal 40"]


ORPHAN = """
import os, signal, sys, time
from app.process import adopt_orphans, reaped
adopt_orphans()
told, tell = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os.write(tell, str(os.getpid()).encode())
        signal.pause()
    signal.pause()
orphan = int(os.read(told, 20))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert reaped(set()) == set(), "it lives"
os.kill(orphan, signal.SIGKILL)
os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
assert reaped(set()) == {orphan}, "for one of our own somebody may wait"
assert reaped({orphan}) == set()
try:
    os.waitpid(orphan, 0)
except ChildProcessError:
    print("gone")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl")
def test_what_a_killed_child_leaves_behind_is_ours_and_let_go_at_the_second_look():
    told = subprocess.run([sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told == "gone\n"


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


BESIDE = """
import os, signal, socket, sys, threading
from app.process import fork_beside
keeper = os.fork()
if keeper == 0:
    ours, theirs = socket.socketpair()
    sibling = fork_beside()
    if sibling == 0:
        opened, other = socket.socketpair()
        thread = threading.Thread(target=other.sendall, args=(b"last words",))
        thread.start()
        thread.join()
        theirs.sendall(b"%d" % opened.fileno())
        signal.raise_signal(signal.SIGKILL)
    left = socket.socket(fileno=int(ours.recv(9)))
    print(left.recv(99).decode(), flush=True)
    os._exit(0)
print(*sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
"""


@pytest.mark.skipif(not process.can_fork_beside(), reason="Linux's clone")
def test_a_sibling_that_was_killed_leaves_its_descriptors():
    told = subprocess.run([sys.executable, "-c", BESIDE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.split("\n")[:2] == ["last words", "-9 0"], told


FAILS = """
import os, socket
from contextlib import suppress
from app.process import fork_beside, whole_life
def life(number):
    left = socket.socket(fileno=number)
    raise SystemExit("no room")
keeper = os.fork()
if keeper == 0:
    caller, inherited = socket.socketpair()
    number = inherited.detach()
    sibling = fork_beside()
    if sibling == 0:
        whole_life(lambda: life(number))
    with suppress(ProcessLookupError):
        while True:
            os.kill(sibling, 0)
    print(socket.socket(fileno=number).send(b"its successor's answer"), flush=True)
    os._exit(0)
print(*sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
"""


@pytest.mark.skipif(not process.can_fork_beside(), reason="Linux's clone")
def test_a_sibling_that_fails_leaves_what_it_inherited_open():
    """It had taken a killed frontend's connections, and could not begin: its callers were lost with its last frame."""
    told = subprocess.run([sys.executable, "-c", FAILS], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.split() == ["22", "0", "1"], told


PARENT = """
import subprocess, sys
from app.process import child_command
subprocess.Popen([sys.executable, "-c", sys.argv[1], child_command("")[-1]])
"""
CHILD = """
import sys
from app.process import die_with_parent
sys.stdin.read()
die_with_parent(int(sys.argv[1]))
print("nobody ends me")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl")
def test_who_lost_its_parent_before_it_asked_ends_at_once():
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.wait(60) == 0
        assert parent.communicate(timeout=60) == (b"", None)
    assert run("process.die_with_parent(os.getppid()); print('there')") == "there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl")
@pytest.mark.parametrize("module", CHILDREN)
def test_every_child_of_ours_ends_if_its_parent_is_gone_before_it_asks(module: str):
    """Its parent was told as another process than the one that it has. It says nothing, needs no further argument."""
    command = process.child_command(module)
    command[-1] = str(os.getppid())
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_elsewhere_nothing_is_forked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process.platform, "machine", lambda: "riscv128")
    with pytest.raises(OSError, match="not implemented"):
        process.fork_beside()


def run(program: str) -> str:
    command = [sys.executable, "-c", f"import os, app.process as process\n{program}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels choose otherwise")
def test_who_goes_first_when_memory_ends_never_goes_later_than_before():
    told = run("process.go_first(300); process.go_first(100); print(open('/proc/self/oom_score_adj').read())")
    assert int(told) == 300


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


LEASHED = """
import subprocess, sys
from app.process import leashed_command
child = subprocess.Popen(leashed_command("http.server", "0"), stdout=subprocess.PIPE, env={"PYTHONUNBUFFERED": "1"})
print(child.pid, child.stdout.readline(), flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl")
def test_a_module_that_knows_nothing_of_it_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", LEASHED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, told = parent.stdout.readline().split(maxsplit=1)
        assert "Serving HTTP" in told
        child = psutil.Process(int(pid))
        parent.kill()
    assert child.wait(30) is None
