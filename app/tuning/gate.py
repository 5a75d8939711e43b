"""Holds tuners back while models answer requests: a batch waits for the slower of its threads, and a low priority does not help
where a core is shared or its caches are. What the workers do stands in their black boxes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from app.process import take_short_turns
from app.wire.blackbox import BlackBox

_TICK_S = 0.002  # between two looks while requests come; the shortest batches take as long
_DOZE_S = 0.01  # between two looks when none came for a while: 500 looks a second take a fifteenth of a core
_AWAKE_S = 1.0  # after a batch
_QUIET_S = 0.05  # without a batch, after which tuners run freely again
_PERIOD_S = 0.1  # of which tuners get their share while requests come, in one piece as near as may be
_BOXES_S = 0.5  # between two looks for new workers


class Gate(threading.Thread):
    """Stops and continues the processes `pids()` tells. `share`: of the time that they get while requests come."""

    def __init__(self, folder: Path, share: float, pids: Callable[[], Collection[int]]) -> None:
        super().__init__(name="gate", daemon=True)
        self._folder = folder
        self._share = share
        self._pids = pids
        self._boxes: dict[Path, BlackBox] = {}
        self._looked = 0.0
        self._quiet_from = 0.0
        self._turned = 0.0
        self._due = 0.0  # seconds that tuners may run while requests come; less than none where they ran too long
        self._stopped: set[int] = set()
        self._end = threading.Event()

    def run(self) -> None:
        """Until `close`."""
        take_short_turns()  # a look that comes late lets tuners run for so long
        while not self._end.wait(self._pause_s(time.monotonic()) if self._pids() else _BOXES_S):
            self.turn(time.monotonic())

    def _pause_s(self, now: float) -> float:
        return _TICK_S if now < self._quiet_from - _QUIET_S + _AWAKE_S else _DOZE_S

    def turn(self, now: float) -> None:
        """One look."""
        if now - self._looked > _BOXES_S:
            self._looked = now
            self._find()
        if any(box.read().busy_since for box in self._boxes.values()):
            self._quiet_from = now + _QUIET_S
        if quiet := now >= self._quiet_from:
            self._due = min(0.0, self._due)  # they run: nothing is due to them that the next request would have to pay for
        free = quiet or self._has_turn(now - self._turned)
        self._turned = now
        pids = set(self._pids())
        for pid in pids & self._stopped if free else pids - self._stopped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT if free else signal.SIGSTOP)
        self._stopped = set() if free else pids

    def _has_turn(self, passed_s: float) -> bool:
        """While requests come: tuners are let go when a piece is due, until they have had it. What a late look gave them too
        much, up to a piece, they wait for the longer.
        """
        piece = self._share * _PERIOD_S
        if self._stopped:
            self._due = min(piece, self._due + self._share * passed_s)
            return self._due >= piece
        self._due = max(-piece, self._due - (1 - self._share) * passed_s)
        return self._due > 0

    def _find(self) -> None:
        try:
            there = set(self._folder.glob("*.blackbox"))
        except OSError:  # no descriptor is left to look by
            return
        for path in self._boxes.keys() - there:
            self._boxes.pop(path).close()
        for path in there - self._boxes.keys():
            with contextlib.suppress(OSError, ValueError):  # its worker has just gone, or is not all there yet
                self._boxes[path] = BlackBox(path)

    def close(self) -> None:
        """Let all run on."""
        self._end.set()
        if self.is_alive():
            self.join()
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)
