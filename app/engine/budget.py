"""How much a batch may cost for the memory that there is: what batches took, measured, against what is free. Knows no queue."""

from __future__ import annotations

import math

from app.engine.lane import Lane

_SHARE = 0.5  # of what is free: other workers, and frontends, take from the same
_EVERY_S = 0.25  # asking the kernel costs a tenth of a millisecond


class Budget:
    """Of one worker and what it computes by. What a batch took stays with the process (glibc's and PyTorch's allocators keep it,
    `device.keep_memory`), so what it holds afterwards, less what it held before its first batch, is what the dearest one took.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._before = lane.held()
        self._dearest, self._took = 0.0, 0
        self._room, self._asked = math.inf, -math.inf

    def took(self, cost: float) -> None:
        """A batch of this cost was answered."""
        if cost > self._dearest:
            self._dearest, self._took = cost, self._lane.held() - self._before

    def room(self, now: float) -> float:
        """What the next batch may cost, in proportion to the dearest; infinity while none took anything."""
        if self._took > 0 and now - self._asked >= _EVERY_S:
            self._asked = now
            there = max(0, self._lane.held() - self._before) + _SHARE * self._lane.free()
            self._room = self._dearest * there / self._took
        return self._room
