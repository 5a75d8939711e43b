"""What every child process of ours does first, and how it is called. Linux first; elsewhere the calls do nothing."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # prctl(2)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that nothing is ever orphaned."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_name(name: str) -> None:
    """What `top` and `ps -o comm` show (15 characters)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules. `-P`: never a folder `app` that lies where the user stands."""
    return [sys.executable, "-P", "-m", module, *arguments]


def search_path() -> str:
    """The folder that holds the package `app`, for PYTHONPATH: a checkout works without being installed."""
    return str(Path(__file__).resolve().parents[1])


def resident_bytes(pid: int) -> int:
    """Memory of a process: its proportional share where the kernel tells it (forked workers share pages), else what is resident.

    0 if the process is gone.
    """
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", memory.rss))
