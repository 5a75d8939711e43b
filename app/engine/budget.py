"""How much a batch may cost for the memory that there is: what batches took, measured, against what is free. Knows no queue."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from app.engine.lane import Lane

_SHARE = 0.5  # of what is free: other workers, and frontends, take from the same
_EVERY_S = 0.25  # asking the kernel costs a tenth of a millisecond


class Budget:
    """Of one worker and what it computes by. What a batch takes is the most that the process held while it ran, less what it held
    before its first batch; what allocators keep of it is there for the next one. The dearest batch tells.
    """

    def __init__(self, lane: Lane, waiting: Callable[[], int] = lambda: 0) -> None:
        """`waiting`: the bytes of inputs that lie in the same memory, which no batch takes."""
        self._lane, self._waiting = lane, waiting
        self._before: int | None = None
        self._begin()
        self._watched = False
        self._dearest, self._took = 0.0, 0
        self._room, self._asked = math.inf, -math.inf

    def _begin(self) -> None:
        with suppress(OSError):  # no descriptor is left to ask the kernel by: the next batch begins it
            self._lane.held()  # if there is one: what is kept is not given back in vain
            self._lane.make_room()
            self._before = self._lane.held() - self._waiting()

    def begins(self, cost: float) -> None:
        """A batch of this cost is about to run."""
        if self._before is None:
            self._begin()
        if cost > self._dearest:
            self._watched = self._lane.watch()

    def took(self, cost: float) -> None:
        """A batch of this cost was answered, in one piece, and its inputs are still here."""
        if cost <= self._dearest or self._before is None:
            return
        with suppress(OSError):  # as above
            taken = (self._lane.peak() if self._watched else self._lane.held()) - self._waiting() - self._before
            if taken >= (0 if self._watched else self._took):  # what is kept alone may be less, though more was taken
                self._dearest, self._took = cost, taken

    def room(self, now: float) -> float:
        """What the next batch may cost, in proportion to the dearest; infinity while none took anything."""
        if now - self._asked >= _EVERY_S and self._before is not None:
            self._asked = now
            with suppress(OSError):  # as above: what it said last holds
                self._ask(self._before)
        return self._room

    def _ask(self, before: int) -> None:
        kept, free = self._kept(before), self._lane.free()
        if self._took > 0:
            # The first batch pays for what is taken once, too. Where one more of its kind surely fits, two may tell more.
            more = min(free, self._took) if kept >= _SHARE * self._took else 0
            self._room = self._dearest * (kept + max(_SHARE * free, more)) / self._took

    def _kept(self, before: int) -> int:
        """What batches took and the process kept. What was free in its heap before the first one, and is given back since, the
        dearest may have used.
        """
        held = self._lane.held() - self._waiting()
        if held < before:
            self._took += (before - held) * (self._took > 0)
            self._before = before = held
        return held - before
