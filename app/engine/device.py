"""Devices, threads and memory. Imports torch only where it is needed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from app.settings import cores

HARDLY_FASTER = 1.2  # one thread may take so much longer than several
QUICK_S = 0.005  # of a batch: a model that takes longer gains by more threads
_ROUNDS = 5
# Of cgroups, versions 2 and 1: their folder, limit and use, and how the lines of memory.stat begin that count it all.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def available() -> list[str]:
    """The devices that workers can be placed on: every CUDA device, else the CPU.

    Asks NVML, not the driver (PYTORCH_NVML_BASED_CUDA_CHECK=1), so that no CUDA context is opened in the nursery.
    """
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def thread_count(device: str, threads: int | None) -> int:
    """So many CPU threads; None: one per core on the CPU, one on CUDA."""
    return threads or (cores() if device == "cpu" else 1)


def settle(device: str, threads: int | None) -> int:
    """Make this process's PyTorch ready to compute on `device` with so many CPU threads (`thread_count`). Returns how many."""
    import torch

    chosen = thread_count(device, threads)
    torch.set_num_threads(chosen)
    if device != "cpu":
        torch.cuda.set_device(device)
        # Exactness before speed: fp32 means fp32 (DESIGN §1), so TF32 stays off.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return chosen


def spare_threads(call: Callable[[], object]) -> None:
    """One thread for a quick model to which more are hardly any help: the second one's spinning would take a frontend's core."""
    import torch

    many = torch.get_num_threads()
    best = {1: float("inf"), many: float("inf")}
    for threads in (1, many) * _ROUNDS:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        call()
        best[threads] = min(best[threads], time.perf_counter() - started)
        if best[threads] > QUICK_S:
            torch.set_num_threads(many)
            return
    torch.set_num_threads(1 if best[1] < HARDLY_FASTER * best[many] else many)


def leave_cores_to(engine: str, threads: int) -> None:
    """OpenVINO computes with threads of its own. OpenMP's, which PyTorch wakes for what little is left to it, would spin beside
    them for milliseconds: 6 % of MiniLM's time went into the pooling of its vectors, and more into waiting for the cores.
    """
    if (torch := sys.modules.get("torch")) is None:
        return
    if engine == "openvino":
        torch.set_num_threads(1)
    elif threads:
        torch.set_num_threads(threads)


def keep_memory() -> None:
    """Have glibc keep what is freed (mallopt(3); elsewhere nothing). By default it gives each large activation back to the kernel
    and takes fresh zeroed pages for the next one: a fourth to a third of a ResNet's time on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25):  # some take no more than 32 MiB
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def bound_memory(most_mb: float | None) -> None:
    """Refuse this process more writable memory than that, or than there is (RLIMIT_DATA; Linux). The input that asks for more
    then fails with OutOfMemory, instead of the kernel ending some process.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = int(most_mb * 2**20) if most_mb else memory_bytes()
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def memory_bytes() -> int:
    """What the machine has of memory and swap, or the container may have (cgroups, both versions)."""
    found: list[int] = [psutil.virtual_memory().total + psutil.swap_memory().total]
    for folder, limit, _, _ in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            found.append(int((folder / limit).read_text()))
    return min(found)


def held_bytes() -> int:
    """Memory of this process that is no file's and not shared, swapped out or not; off Linux, all that is resident."""
    with contextlib.suppress(OSError, KeyError):
        now = _status()
        return now["RssAnon"] + now.get("VmSwap", 0)
    return int(psutil.Process().memory_info().rss)


def watch_peak() -> bool:
    """From now on `peak_bytes` is counted anew (clear_refs of proc(5)). False where that cannot be, or not be told."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return {"VmHWM", "RssFile", "RssShmem"} <= _status().keys()
    except OSError:
        return False


def peak_bytes() -> int:
    """The most that `held_bytes` was since `watch_peak`; what files and shared memory took meanwhile counts with it."""
    then = _status()
    return then["VmHWM"] - then["RssFile"] - then["RssShmem"] + then.get("VmSwap", 0)


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status (proc(5)), in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) << 10 for name, size, _ in lines}


def free_bytes() -> int:
    """What this process may still take of the machine's memory and of the container's.

    Files' pages are given up first; shared memory, which the kernel counts as cache too, is not. Not of its own limit, which
    counts as taken what is free in its heap: whoever comes to that hears of it (`bound_memory`).
    """
    found: list[int] = [psutil.virtual_memory().available]
    for folder, limit, used, every in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(most - now + int(stat[f"{every}inactive_file"]) + int(stat[f"{every}active_file"]))
    return max(0, min(found))


def give_back() -> None:
    """Return to the kernel what is free (malloc_trim(3)): a worker does so when it has been idle for a while."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def forget_files(folder: Path) -> None:
    """Let go of the pages of files there that are mapped shared and read-only (madvise(2), MADV_DONTNEED; Linux).

    What is touched again comes from the page cache. (Of private maps it would lose what was written to them: a library's are
    read-only once it is relocated.) OpenVINO reads weights once, to lay them out as its kernels want them; the file's pages stay
    for nothing: of BERT-base 415 MB of 830.
    """
    if sys.platform != "linux":
        return
    libc, folder = ctypes.CDLL(None), folder.resolve()
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            span, access, _, _, _, *path = line.split(maxsplit=5)
            if path and access == "r--s" and Path(path[0]).is_relative_to(folder):
                start, end = (int(place, 16) for place in span.split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


if __name__ == "__main__":
    sys.stdout.write(" ".join(available()))
