"""What a process that reads files of strangers gives up before the first one. Each part is done where the kernel can do it."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from struct import Struct

_FILES = 64  # descriptors: a socket, and a module that is imported late
_FIRST_TO_GO = 500  # of 1000: where memory runs out, the kernel ends a decoder, not a model's worker
_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# What each version of Landlock can forbid on files (landlock(7)): from the fifth on, 16 rights.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_TCP, _SIGNALS_AND_SOCKETS = 0b11, 0b11  # bind and connect; to processes outside


def confine(room: int) -> None:
    """From now on this process may allocate `room` bytes more than it has, reads nothing but Python's modules, writes no file,
    starts no program, connects to nobody and signals nobody.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # memory that is handed over counts as a file
    if sys.platform != "linux":
        return
    most = _data_bytes() + room
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lock(libc)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))


def _data_bytes() -> int:
    """What counts for RLIMIT_DATA: private and writable, touched or not."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))


def _lock(libc: ctypes.CDLL) -> None:
    """Landlock; kernels before 5.13 have none."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return
    files = (1 << _RIGHTS.get(version, 16)) - 1
    words = (files, _TCP, _SIGNALS_AND_SOCKETS)[: 1 if version < 4 else 2 if version < 6 else 3]
    rules = Struct(f"<{len(words)}Q")
    ruleset = libc.syscall(_CREATE_RULESET, rules.pack(*words), ctypes.c_size_t(rules.size), 0)
    for place in {path for path in sys.path if Path(path).is_dir()}:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        allowed = Struct("<Qi").pack(_READ_FILE | _READ_DIR, descriptor)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, allowed, 0)
        os.close(descriptor)
    libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
