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
        if cost > self._dearest and (taken := self._kept()) >= min(1, self._took):
            self._dearest, self._took = cost, taken

    def room(self, now: float) -> float:
        """What the next batch may cost, in proportion to the dearest; infinity while none took anything."""
        if now - self._asked >= _EVERY_S:
            self._asked, kept, free = now, self._kept(), self._lane.free()
            if self._took > 0:
                # The first batch pays for what is taken once, too. Where one more of its kind surely fits, two may tell more.
                self._room = self._dearest * (kept + max(_SHARE * free, min(free, self._took))) / self._took
        return self._room

    def _kept(self) -> int:
        """What batches took and the process kept."""
        held = self._lane.held()
        self._before = min(self._before, held)
        return held - self._before
