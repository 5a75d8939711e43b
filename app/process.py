"""What every child process of ours does first, and how it is called. Linux first; elsewhere the calls do nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import runpy
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import psutil

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_FILES, _CLONE_PARENT = 0x400, 0x8000  # clone(2)
DESCRIPTORS = 1 << 16
"""As many as a process of ours has at most."""

_MODEST = 10  # nice
_TURN_NS = 100_000  # the shortest that the kernel grants; a model's threads have 3 ms
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # prctl(2)
_F_SETSIG = 10  # fcntl(2)
_FRESH_S = 1.0


def ending(status: int) -> str:
    """How a process ended, in words: `SIGKILL`, `signal 40`, `exit status 3`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time one has no name
        return f"signal {-status}"


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, so that nothing is ever orphaned.

    `parent`: its pid, as the parent itself told it (`child_command`, or before a fork): it may have died before this is asked,
    which the kernel does not tell. Then this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def outlive_parent() -> None:
    """Take `die_with_parent` back."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Be the parent of all descendants whose own one was killed, as the first process of a container is: see `reaped`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reaped(dead: set[int]) -> set[int]:
    """Let adopted children go that have ended: those that were dead at the last look, too, because for our own somebody waits.

    `dead`: what the last look told (at first nothing).
    """
    now = _dead()
    for pid in now & dead:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return now - dead


def _dead() -> set[int]:
    """Children that have ended and that nobody has waited for."""
    if sys.platform == "linux":  # elsewhere nobody is adopted
        with suppress(psutil.Error, OSError):  # no child at all; or no descriptor is left to look by
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # to look at all processes takes milliseconds
                return {child.pid for child in psutil.Process().children() if _is(psutil.STATUS_ZOMBIE, child.pid)}
    return set()


def _is(status: str, pid: int) -> bool:
    with suppress(psutil.Error, OSError):  # it is gone; or no descriptor is left to look by
        return bool(psutil.Process(pid).status() == status)
    return False


def can_fork_beside() -> bool:
    """Whether `fork_beside` works here."""
    return sys.platform == "linux" and platform.machine() in _CLONE


def fork_beside() -> int:
    """Fork as `os.fork` does, but a sibling (it has our parent) with this process's table of descriptors, not a copy (clone(2)).

    What either opens both have, until one of them closes it; what one leaves behind when it is killed, the other still has.
    For processes with one thread, because locks of other threads would stay taken. Raises OSError.
    """
    if not can_fork_beside():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    c = ctypes.PyDLL(None, use_errno=True)  # one that keeps the interpreter's lock
    c.PyOS_BeforeFork()
    pid = int(c.syscall(_CLONE[platform.machine()], _CLONE_FILES | _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    failed = ctypes.get_errno()
    (c.PyOS_AfterFork_Parent if pid else c.PyOS_AfterFork_Child)()
    if pid < 0:
        raise OSError(failed, os.strerror(failed))
    return pid


def take_descriptors() -> None:
    """As many as we are allowed: the usual 1024 are a thousand idle callers."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS allows fewer than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS if most < 0 else min(most, DESCRIPTORS), most))


def die_with(address: str) -> int:
    """Ask the kernel to kill this process when whoever listens at `address` is gone, whatever becomes of its parent.

    The end of a connection that nobody ever writes to is told by a signal (fcntl(2), F_SETSIG): a model that computes, or hangs,
    need not look. The connection's descriptor, which a forked child should close; -1: none. Raises OSError where
    nobody listens.
    """
    if sys.platform != "linux":
        return -1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as leash:
        leash.connect(address)
        fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(leash, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(leash, fcntl.F_SETFL, os.O_ASYNC)
        return leash.detach()  # open for as long as the process lives


def whole_life(life: Callable[[], object]) -> NoReturn:
    """Of a forked child, which must never return into its parent's loop.

    What its frames hold when it fails is not closed: others may share its descriptors (`fork_beside`), and go on with them.
    """
    failed: BaseException | None = None
    try:
        life()
    except BaseException as error:  # noqa: BLE001  whatever it is, nobody above may catch it
        failed = error  # and with it its frames, beyond this block
        traceback.print_exc()
    finally:
        with suppress(Exception):  # a pipe that nobody reads
            sys.stderr.flush()
        os._exit(0 if failed is None else 1)


def set_name(name: str) -> None:
    """What `top` and `ps -o comm` show (15 characters)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def hear_of_children() -> tuple[socket.socket, socket.socket]:
    """The first has something to read whenever a child may have ended (signal.set_wakeup_fd). Both must be kept."""
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    return told, tells


def hear_no_more() -> None:
    """In a forked child, what its parent heard by `hear_of_children`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def is_there(pid: int) -> bool:
    """Whether it lives, or is not let go yet. Needs no descriptor, as psutil does."""
    with suppress(OSError):  # gone, or another user's that has its number since
        os.kill(pid, 0)
        return True
    return False


def is_stopped(pid: int) -> bool:
    """By SIGSTOP or the like: it does nothing until it is continued, or killed."""
    return _is(psutil.STATUS_STOPPED, pid)


def take_short_turns() -> None:
    """Ask the scheduler to give this process a core soon after it wakes up, and in return for shorter turns (sched_setattr(2)).

    Linux 6.12 and later; others take no notice. A refusal under overload then takes 20 to 70 ms at the 99th percentile instead of
    100 to 230, because it need not wait until a model's threads have had their turn.
    """
    call = _SCHED_SETATTR.get(platform.machine())
    if sys.platform == "linux" and call is not None:
        # size, policy SCHED_OTHER, flags, nice, priority, runtime (ns), deadline, period: struct sched_attr
        attributes = struct.pack("<IIQiIQQQ", 48, 0, 0, os.nice(0), 0, _TURN_NS, 0, 0)
        ctypes.CDLL(None).syscall(call, 0, attributes, 0)


def go_first(score: int) -> None:
    """When the machine has no more memory, have the kernel end this process before others (proc(5), oom_score_adj): those whose
    loss is mended in a second, not those that mend it. `score` is in thousandths of the memory there is.
    """
    file = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        file.write_text(str(max(score, int(file.read_text()))))


def stand_back() -> None:
    """Let all others have the cores first: this process, and its whole session where the kernel shares cores among sessions
    (sched(7), autogroup), since there a process's own nice counts among its session alone.
    """
    os.nice(_MODEST)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_MODEST))


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules. `-P`: never a folder `app` that lies where the user stands."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_command(module: str, *arguments: str) -> list[str]:
    """The same for a process that ends with this one: our pid is its first argument, for `die_with_parent`. To import what it
    needs takes it seconds, in which we may be killed.
    """
    return command(module, str(os.getpid()), *arguments)


def leashed_command(module: str, *arguments: str) -> list[str]:
    """The same for a module that knows nothing of it."""
    return child_command("app.process", module, *arguments)


def search_path() -> str:
    """The folder that holds the package `app`, for PYTHONPATH: a checkout works without being installed."""
    return str(Path(__file__).resolve().parents[1])


def resident_bytes(pid: int) -> int:
    """Memory of a process: its proportional share where the kernel tells it (forked workers share pages), else what is resident.

    0 if the process is gone, or no descriptor is left to look by. To count pages takes ten
    milliseconds: what is told is at most a second old.
    """
    return _resident_bytes(pid, int(time.monotonic() / _FRESH_S))


@lru_cache(maxsize=256)
def _resident_bytes(pid: int, _: int) -> int:
    try:
        memory = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return 0
    return int(getattr(memory, "pss", memory.rss))


if __name__ == "__main__":  # PARENT MODULE ARGUMENT...: `leashed_command`
    die_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
