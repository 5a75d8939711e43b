"""The keeper of a frontend: imports what it needs, forks it, and has all its descriptors too, so that they outlive it.

It talks numbers, a line each, over a socket: it reads that of the frontend that is to be, and writes the pid. When a frontend was
killed, the next one is there in a tenth of a second, and its connections are still open; nobody at their other ends has noticed.
That takes one table of descriptors for both (`app/process.py: fork_beside`). To hand over each connection instead would take a
message for each, and lose those that came in the moment before.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from app.logs import log
from app.process import can_fork_beside, die_with_parent, fork_beside

Live = Callable[[int, list[socket.socket]], None]
"""A frontend's life: its number, and the connections that the one before it has left behind."""


def keep(control: socket.socket, listening: socket.socket, live: Live) -> None:
    """Fork frontends on demand, until the supervisor is gone. Where that cannot be done, be one."""
    gc.collect()
    gc.freeze()  # a child's collections then leave the shared pages alone
    ours = _descriptors() if can_fork_beside() else set()
    with control.makefile("rb") as numbers:
        for line in numbers:
            try:
                pid = fork_beside()
            except OSError as error:
                log.warning("frontends have no keeper here (%s): one that dies takes its connections along", error.strerror)
                control.sendall(b"%d\n" % os.getpid())
                _live(live, int(line), [])
            if pid == 0:
                _live(live, int(line), _left(ours, listening))
            control.sendall(b"%d\n" % pid)


def _live(live: Live, number: int, left: list[socket.socket]) -> NoReturn:
    """The child's whole life."""
    status = 1
    try:
        die_with_parent()
        live(number, left)
        status = 0
    except BaseException:  # noqa: BLE001  the child must never return into the keeper's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _descriptors() -> set[int]:
    """Those that are open."""
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


def _left(ours: set[int], listening: socket.socket) -> list[socket.socket]:
    """The connections that a frontend has left behind. Whatever else it had is closed."""
    left = []
    for descriptor in _descriptors() - ours:
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:  # no socket
            with suppress(OSError):  # it was what listed the others
                os.close(descriptor)
            continue
        if is_caller(found, listening):
            left.append(found)
        else:
            found.close()
    return left


def is_caller(found: socket.socket, listening: socket.socket) -> bool:
    """Whether it is a connection to where we listen."""
    try:
        found.getpeername()
        return found.family == listening.family and found.getsockname()[1] == listening.getsockname()[1]
    except OSError:
        return False
