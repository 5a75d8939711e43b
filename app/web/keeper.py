"""The keeper of a frontend: imports what it needs, forks it, and has all its descriptors too, so that they outlive it.

It talks numbers, a line each, over a socket: it reads that of the frontend that is to be, and writes the pid. When a frontend was
killed, the next one is there in a tenth of a second, and its connections are still open; nobody at their other ends has noticed.
That takes one table of descriptors for both (`app/process.py: fork_beside`). To hand over each connection instead would take a
message for each, and lose those that came in the moment before.
"""

from __future__ import annotations

import fcntl
import gc
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from app.logs import log
from app.process import DESCRIPTORS, can_fork_beside, die_with_parent, fork_beside, whole_life

NO_MORE = 0
"""Instead of a frontend's number: nobody is accepted any more."""

Live = Callable[[int, socket.socket | None, list[socket.socket]], None]
"""A frontend's life: its number, where it listens (None: it finishes what was accepted, and ends), and the connections that the
one before it has left behind.
"""


def keep(supervisor: int, control: socket.socket, listening: socket.socket, live: Live) -> None:
    """Fork frontends on demand, until the supervisor, which has this pid, is gone. Where that cannot be done, be one."""
    gc.collect()
    gc.freeze()  # a child's collections then leave the shared pages alone
    ours = _descriptors() if can_fork_beside() else set()
    home, accepting = listening.getsockname(), True

    def begin(number: int, *, shared: bool) -> NoReturn:
        """Be a frontend. It closes what it listens on when it is told to end: not ours, which the next one needs."""

        def life() -> None:
            die_with_parent(supervisor)
            left = _left(ours, home)  # first: it closes whatever is not ours
            live(number, (listening.dup() if shared else listening) if accepting else None, left)

        whole_life(life)

    with control.makefile("rb") as numbers:
        for line in numbers:
            if int(line) == NO_MORE:
                accepting = False
                ours.discard(listening.fileno())
                listening.close()
                continue
            if accepting and not is_listening(listening):
                log.error("what the keeper listens on was closed; the next keeper has it")
                return
            try:
                pid = fork_beside()
            except OSError as error:
                log.warning("frontends have no keeper here (%s): one that dies takes its connections along", error.strerror)
                control.sendall(b"%d\n" % os.getpid())
                begin(int(line), shared=False)
            if pid == 0:
                begin(int(line), shared=True)
            control.sendall(b"%d\n" % pid)


def _descriptors() -> set[int]:
    """Those that are open; not the one that lists them, whose number the next one gets."""
    numbers: Iterable[int] = range(DESCRIPTORS)
    with suppress(OSError):  # none is left to list them by: each is asked about, which takes some hundredths of a second
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return set(filter(_is_open, numbers))


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _left(ours: set[int], home: Any) -> list[socket.socket]:
    """The connections to `home` that a frontend has left behind. Whatever else it had is closed."""
    left: list[socket.socket] = []
    if not ours:  # nothing can be left
        return left
    for descriptor in _descriptors() - ours:
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:  # no socket
            os.close(descriptor)
            continue
        if is_caller(found, home):
            left.append(found)
        else:
            found.close()
    return left


def is_listening(found: socket.socket) -> bool:
    """Whether it still is what it was: a frontend may have closed its number, and that may be another one's since."""
    try:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def is_caller(found: socket.socket, home: Any) -> bool:
    """Whether it is a connection to this address, or was one: what stands in the journal of it has to be cleared."""
    try:
        ours = found.getsockname()
    except OSError:
        return False
    return len(ours) == len(home) and ours[1] == home[1] and not is_listening(found)
