"""What a process that reads files of strangers gives up before the first one. Each part is done where the kernel can do it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from struct import Struct

from app.patience import SCARCE

_FILES = 64  # descriptors: a socket, and a module that is imported late
_FIRST_TO_GO = 500  # of 1000: where memory runs out, the kernel ends a decoder, not a model's worker
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# What each version of Landlock can forbid on files (landlock(7)): from the fifth on, 16 rights.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
# What is refused where Landlock has no say: socket, connect, socketpair (whose letters may be sent elsewhere), fork, vfork,
# execve, execveat, ptrace, process_vm_readv and _writev, io_uring_setup (which would do the same unseen) and pidfd_getfd.
_REFUSED = {
    "x86_64": (41, 42, 53, 57, 58, 59, 322, 101, 310, 311, 425, 438),
    "aarch64": (198, 203, 199, 221, 281, 117, 270, 271, 425, 438),
}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_CLONE_THREAD = 0x10000
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # <linux/audit.h>
_FIRST_OF_X32 = 0x40000000  # the same calls once more, on x86_64
_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/filter.h>
_NUMBER_AT, _ARCHITECTURE_AT, _FLAGS_AT = 0, 4, 16  # in struct seccomp_data
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_TCP, _SIGNALS_AND_SOCKETS = 0b11, 0b11  # bind and connect; to processes outside


def confine(room: int) -> list[str]:
    """From now on this process may allocate `room` bytes more than it has, reads nothing but Python's modules, writes no file,
    starts no process, connects to nobody, and (from Linux 6.12 on) signals nobody. What this system does not grant of that.
    Raises OSError where it would, had it a descriptor or memory left.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_FSIZE, room)  # memory that is handed over counts as a file
    if sys.platform != "linux":
        return ["Landlock", "seccomp"]
    _limit(resource.RLIMIT_DATA, _data_bytes() + room)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    missing = [name for name, had in (("Landlock", _lock(libc)), ("seccomp", _filter(libc))) if not had]
    _limit(resource.RLIMIT_NOFILE, _FILES)
    return missing


def _limit(what: int, most: int) -> None:
    """For good. It may be less already."""
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _data_bytes() -> int:
    """What counts for RLIMIT_DATA: private and writable, touched or not."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))


def _lock(libc: ctypes.CDLL) -> bool:
    """Files, by Landlock; kernels before 5.13 have none. Whether it holds."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    files = (1 << _RIGHTS.get(version, 16)) - 1
    words = (files, _TCP, _SIGNALS_AND_SOCKETS)[: 1 if version < 4 else 2 if version < 6 else 3]
    rules = Struct(f"<{len(words)}Q")
    ruleset = libc.syscall(_CREATE_RULESET, rules.pack(*words), ctypes.c_size_t(rules.size), 0)
    if not _granted(ruleset):
        return False
    for place in {path for path in sys.path if Path(path).is_dir()}:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        allowed = Struct("<Qi").pack(_READ_FILE | _READ_DIR, descriptor)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, allowed, 0)
        os.close(descriptor)
    try:
        return _granted(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _filter(libc: ctypes.CDLL) -> bool:
    """System calls, by seccomp. Whether it holds."""
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    refuse, pretend = (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
    # Operation, how many to leave out if it is so, and if not, number.
    program = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), refuse]
    program += [(_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _FIRST_OF_X32), refuse]
    program += [step for call in _REFUSED[machine] for step in ((_EQUAL, 0, 1, call), refuse)]
    program += [(_EQUAL, 0, 1, _CLONE3), pretend]  # its flags lie in memory; C libraries then take clone
    program += [(_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, _FLAGS_AT), (_HAS, 1, 0, _CLONE_THREAD), refuse]
    program += [(_RETURN, 0, 0, _ALLOW)]
    steps = ctypes.create_string_buffer(b"".join(Struct("=HBBI").pack(*step) for step in program))
    return _granted(libc.prctl(_PR_SET_SECCOMP, 2, Struct("@HP").pack(len(program), ctypes.addressof(steps)), 0, 0))


def _granted(returned: int) -> bool:
    """Whether the kernel did what it was asked, or never does. Raises OSError where it had too little to do it now."""
    if returned < 0 and (why := ctypes.get_errno()) in SCARCE:
        raise OSError(why, os.strerror(why))
    return returned >= 0
