"""What the lasting processes of a server hold, all together and each kind by itself, and whether it grows.

What a process leaks goes with it when it is killed, and in the sum of all processes it is little. So each kind of process (the
frontends, the workers of a model, …) is judged by itself, too, within lives: descriptors and threads from the first quarter to
the last, memory against time with each life's own means taken out. It is what is anonymous (RssAnon): PSS and USS move when a
sibling comes or goes with whom pages are shared; those of a healthy worker by -92 and -24 % an hour, while this grew by 0.4.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import faults
import psutil

YOUNG_S = 60.0  # of a life: not counted, allocators and caches fill
LONG_S = 180.0  # so much of one is needed for a slope
_JUMP = 0.2  # of what it holds, from one look to the next


@dataclass(frozen=True, slots=True)
class Held:
    """What the lasting processes of a server have, all together."""

    memory_mib: float
    descriptors: float
    threads: float
    shared_mib: float
    passing: float
    """Processes that come and go, which have no part in the others."""


def held(server: int, passing_names: tuple[str, ...]) -> Held:
    """Now. Memory is PSS, and what passing ones share of it; shared is what lies in memory for several to see, and the private
    folder with its mapped files.
    """
    ones, passing = [], []
    for one, name in named(server):
        (passing if name.startswith(passing_names) else ones).append(one)
    pss = descriptors = threads = shared = 0.0
    for one in passing:
        with contextlib.suppress(psutil.Error, OSError):
            memory = one.memory_full_info()
            pss += memory.pss - memory.uss
    for one in [psutil.Process(server), *ones]:
        with contextlib.suppress(psutil.Error, OSError):
            shared += _of_status(one.pid, "RssShmem:")
            pss += one.memory_full_info().pss
            descriptors += one.num_fds()
            threads += one.num_threads()
    shared += sum(_folder_bytes(Path(folder).parent) for folder in {faults.folder(one) for one in ones} if folder)
    return Held(pss / 2**20, descriptors, threads, shared / 2**20, len(passing))


class Lives:
    """What each process held, and when; a kind has as many lives as there were processes of its name."""

    def __init__(self) -> None:
        self._lives: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        self._counts: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)

    def look(self, server: int, passing_names: tuple[str, ...], now_s: float) -> None:
        for one, name in [(psutil.Process(server), "supervisor"), *named(server)]:
            if not name.startswith(passing_names):
                with contextlib.suppress(psutil.Error, OSError):
                    if size := _of_status(one.pid, "RssAnon:"):  # what has just died has none
                        kind = name.removeprefix("hearth ").rstrip(" 0123456789")
                        self.seen(kind, one.pid, now_s, size / 2**20)
                        self.counted("descriptors", kind, one.pid, now_s, one.num_fds())
                        self.counted("threads", kind, one.pid, now_s, one.num_threads())

    def seen(self, kind: str, pid: int, now_s: float, mib: float) -> None:
        self._lives[kind][pid].append((now_s, mib))

    def counted(self, what: str, kind: str, pid: int, now_s: float, number: float) -> None:
        self._counts[what, kind, pid].append((now_s, number))

    def gained(self, what: str) -> dict[str, float]:
        """By how much there was more in the last quarter of a life than in the first, at the median, without its first minute:
        the most of each kind that lived for long. A rate of what are some dozens would tell one more for a leak.
        """
        found: dict[str, float] = {}
        for (counted, kind, _), life in self._counts.items():
            settled = [one for one in life if one[0] - life[0][0] >= YOUNG_S]
            if counted == what and _seconds(settled) >= LONG_S:
                numbers, quarter = [number for _, number in settled], max(1, len(settled) // 4)
                more = statistics.median(numbers[-quarter:]) - statistics.median(numbers[:quarter])
                found[kind] = max(more, found.get(kind, more))
        return found

    def slopes(self) -> dict[str, float]:
        """Growth an hour as a share of the mean, of each kind that lived for long."""
        found = {kind: [part for life in lives.values() for part in _settled(life)] for kind, lives in self._lives.items()}
        return {kind: _within(parts) for kind, parts in found.items() if max(map(_seconds, parts)) >= LONG_S}


def _settled(life: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Without its first minute. A jump begins another life: a nursery takes torch in when the first model needs it."""
    parts = [life[:1]]
    for (_, before_mib), one in pairwise(life):
        if abs(one[1] / before_mib - 1) > _JUMP:
            parts.append([])
        parts[-1].append(one)
    return [[one for one in part if one[0] - part[0][0] >= YOUNG_S] for part in parts]


def _seconds(part: list[tuple[float, float]]) -> float:
    return part[-1][0] - part[0][0] if part else 0.0


def _within(lives: list[list[tuple[float, float]]]) -> float:
    """By least squares about each life's own means, in which a long life counts for more than many short ones."""
    times_s, over_mib, all_mib = [], [], []
    for life in filter(None, lives):
        at_s, mib = zip(*life, strict=True)
        times_s += _about_mean(at_s)
        over_mib += _about_mean(mib)
        all_mib += mib
    return statistics.linear_regression(times_s, over_mib, proportional=True).slope * 3600 / statistics.mean(all_mib)


def named(server: int) -> list[tuple[psutil.Process, str]]:
    """The server's processes, and what they are called; but for those that just end."""
    found = []
    for one in faults.processes(server):
        with contextlib.suppress(psutil.Error):
            found.append((one, one.name()))
    return found


def _about_mean(values: Sequence[float]) -> list[float]:
    mean = statistics.fmean(values)
    return [value - mean for value in values]


def _of_status(pid: int, field: str) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _folder_bytes(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.lstat().st_size
    return found


def slope(times_s: list[float], values: list[float]) -> float:
    """By least squares: growth an hour as a share of the mean."""
    return statistics.linear_regression(times_s, values).slope * 3600 / statistics.mean(values)
