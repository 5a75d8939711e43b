"""Faults that are done at the same time, each by a thread of its own, and what of them a caller may have felt."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from tests.chaos.test_processes import FRONTEND_STALL_S
from tests.chaos.toys import LOOKS_S, STALL_S

BEFORE_S = 3.0  # whose faults may still be felt
KILLS = ("worker", "nursery", "frontend")  # of what the default model cannot do without
# What stands still, and after how many seconds that is noticed; an input that hangs is tried once more by itself.
WEDGES = {
    "stopped_worker": STALL_S + LOOKS_S,
    "stopped_frontend": FRONTEND_STALL_S + LOOKS_S,
    "hangs": 2 * (STALL_S + LOOKS_S),
}


class Wreckers:
    """Threads that do one fault each, about every so many seconds, until the block ends; how often each was done."""

    def __init__(self, **every: tuple[float, Callable[[], object]]) -> None:
        self._every = every
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(len(every))
        self._log: list[tuple[float, float, str]] = []  # from when to when it was done
        self.strange: list[str] = []
        """What those that ask the server for something were told, or what kept its answer from them, and should not have."""

    @property
    def done(self) -> dict[str, int]:
        """How often each was."""
        names = [name for *_, name in self._log]
        return {name: names.count(name) for name in self._every}

    def standing_still(self, asked: float, answered: float) -> float:
        """Seconds that a request may have waited for what stood still while it was under way: the time in which anything may have,
        once, and of each fault at most its limit. What hangs may do so late: whoever has it may be killed, or stopped, before.
        """
        limits_s = union_s = 0.0
        at = asked
        for began, ended, name in sorted(one for one in self._log if one[2] in WEDGES):
            end = min(answered, max(ended, began + WEDGES[name]))
            limits_s += min(WEDGES[name], max(0.0, end - max(asked, began)))
            union_s += max(0.0, end - max(at, began))
            at = max(at, end)
        return min(limits_s, union_s)

    def recovered(self, felt: Sequence[tuple[float, float]]) -> list[float]:
        """Of each kill that the default model's callers felt: the seconds until each had a right answer to what it asked after it,
        beyond what stood still. `felt`: since when they were looked at, and for how many seconds, one after the other.
        """
        killed = [at for _, at, name in self._log if name in KILLS and at <= felt[-1][0]]
        again = [next(began + took for began, took in felt if began >= at) for at in killed]
        return [until - at - self.standing_still(at, until) for at, until in zip(killed, again, strict=True)]

    def within(self, asked: float, answered: float) -> list[str]:
        """What was done meanwhile, and shortly before: from and to how many seconds after, and what."""
        return [
            f"{began - asked:+.1f} to {ended - asked:+.1f} {name}"
            for began, ended, name in sorted(self._log)
            if asked - BEFORE_S < ended and began < answered
        ]

    def _run(self, name: str) -> None:
        chance, (every_s, do) = random.Random(name), self._every[name]
        while not self._over.wait(every_s * chance.uniform(0.5, 1.5)):
            # There may be nobody to be hit just now: another fault was quicker.
            began = time.monotonic()
            try:
                do()
            except (LookupError, psutil.Error):
                continue
            except httpx.HTTPError as error:
                self.strange.append(f"{name}: {error!r}")
            self._log.append((began, time.monotonic(), name))

    def __enter__(self) -> Wreckers:
        self._work = [self._threads.submit(self._run, name) for name in self._every]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()
        for work in self._work:
            work.result()
