"""What goes wrong on purpose: a server's processes are found by their names, and killed or stopped."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import psutil


def processes(server: int, name: str = "") -> list[psutil.Process]:
    """Those of the supervisor `server` whose names begin with "hearth " and `name` ("http", "nursery", a model …), oldest first.

    They are known by the folder in their environment: those whose parent was killed are the supervisor's children.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        ours = {folder(child) for child in psutil.Process(server).children()} - {None}
        found = [one for one in psutil.process_iter() if _named(one, name) and folder(one) in ours]
        return sorted(found, key=psutil.Process.create_time)
    return []


def _named(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith(f"hearth {name}"[:15]) and process.status() != psutil.STATUS_ZOMBIE
    return False


def folder(process: psutil.Process) -> str | None:
    """Where its metrics lie, inside the server's private folder."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("PROMETHEUS_MULTIPROC_DIR")
    return None


def kill(server: int, name: str, *, running: bool = False) -> psutil.Process:
    """`kill -9` of the oldest process of this name, which is told; `running`: of those that are not stopped. Raises LookupError
    where there is none.
    """
    victim = _oldest(server, name, running=running)
    victim.kill()
    return victim


def stop(server: int, name: str) -> psutil.Process:
    """SIGSTOP: it is there, and does nothing. Raises LookupError where there is none."""
    victim = _oldest(server, name)
    victim.suspend()
    return victim


def _oldest(server: int, name: str, *, running: bool = False) -> psutil.Process:
    for found in processes(server, name):
        if not (running and found.status() == psutil.STATUS_STOPPED):
            return found
    raise LookupError(f"no process hearth {name} of {server}: nothing went wrong")


def free_number(pid: int, after: int = 0) -> int:
    """The first that is no descriptor of this process, after so many others."""
    taken = {int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return next(islice((number for number in count() if number not in taken), after, None))


@contextlib.contextmanager
def descriptors_below(number: int, pid: int = 0) -> Iterator[None]:
    """Meanwhile this process (0: our own) can open none from `number` on; those that it has it keeps."""
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


@contextlib.contextmanager
def no_descriptors(server: int) -> Iterator[None]:
    """Meanwhile no process of the server can open anything; what they have open they keep."""
    supervisor = psutil.Process(server)
    usual = supervisor.rlimit(psutil.RLIMIT_NOFILE)[0]
    own: dict[int, int] = {}
    try:
        for process in [supervisor, *processes(server)]:
            with contextlib.suppress(psutil.Error, OSError):  # it may just have ended
                own[process.pid], hard = process.rlimit(psutil.RLIMIT_NOFILE)  # decoders have few, for good
                process.rlimit(psutil.RLIMIT_NOFILE, (free_number(process.pid), hard))
        yield
    finally:
        for process in [supervisor, *processes(server), *processes(server)]:  # one of them may just have been forked by another
            with contextlib.suppress(psutil.Error, OSError):
                hard = process.rlimit(psutil.RLIMIT_NOFILE)[1]
                process.rlimit(psutil.RLIMIT_NOFILE, (min(own.get(process.pid, usual), hard), hard))


@contextlib.contextmanager
def nothing_left_of(server: int, limit_s: float = 10.0) -> Iterator[None]:
    """What happens in the block ends the server: none of its processes may outlive it for longer than the limit."""
    children = processes(server)
    yield
    _, alive = psutil.wait_procs(children, timeout=limit_s)
    if alive:
        raise AssertionError(f"still there after {limit_s:g} s: {alive}")
