"""Every unanswered sample of a frontend, and what a worker's death means for it. Pure: no sockets, no clock.

The rule of DESIGN §3: a death blames the samples that were running, not those that waited. A sample blamed once is sent
again; blamed twice, it runs alone; what ends a worker alone, twice, is poisoned. SIGKILL comes from outside, as a rule: it makes
suspect, and convicts only who is met by it again and again, as what takes all memory is. What a worker stands still with is no
chance: it runs alone at once, and if it does that again, it is poisoned; each time its neighbours wait for as long as a batch may
take. Samples that only waited are just sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

SUSPECT = 2  # deaths it was running in, after which nothing may share its batch
_CONVICTED = 3  # one of them alone: the next one is proof
_KILLS = 10  # as for decoders (decoding/client.py)


@dataclass(slots=True, kw_only=True)
class Flight(Generic[T]):
    """One sample under way. `worker` is None while it waits for one."""

    id: int
    model: str
    cargo: T
    worker: str | None = None
    blamed: int = 0
    kills: int = 0
    """Of workers that ran it, by SIGKILL."""
    before: int = 0
    """The id under which a frontend that is gone had sent it, or the first sample of its request."""

    @property
    def alone(self) -> bool:
        """Nothing else may share its batch."""
        return self.blamed >= SUSPECT


@dataclass(slots=True)
class Flights(Generic[T]):
    """The flights of one frontend; `first_id` makes ids unique among frontends."""

    first_id: int = 0
    _open: dict[int, Flight[T]] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Flight[T]]:
        return iter(list(self._open.values()))

    def open(self, model: str, cargo: T) -> Flight[T]:
        """Accept a sample."""
        self._count += 1
        flight = Flight(id=self.first_id + self._count, model=model, cargo=cargo)
        self._open[flight.id] = flight
        return flight

    def close(self, id: int) -> Flight[T] | None:
        """The sample is answered, late or cancelled. None if it was closed before: a second answer is nobody's."""
        return self._open.pop(id, None)

    def aboard(self, worker: str | None) -> list[Flight[T]]:
        """The flights at `worker`; None: those that wait for one."""
        return [flight for flight in self._open.values() if flight.worker == worker]

    def died(
        self,
        worker: str,
        running: Collection[int],
        *,
        stalled: bool = False,
        killed: bool = False,
        sole: Callable[[Flight[T]], bool] = lambda _: True,
    ) -> tuple[list[Flight[T]], list[Flight[T]]]:
        """`worker` died while `running` ran, was ended because they did not end (`stalled`), or was killed by somebody. Returns
        (to send again, poisoned); the poisoned are closed. `sole`: whether a flight is all of its request, so that what was sent
        before is the same sample; that of another one is no proof.
        """
        again, poisoned = [], []
        for flight in self:
            here, before = flight.worker == worker, flight.before > 0 and flight.before in running
            ran = before or flight.id in running
            if here:
                flight.worker = None
            proven = flight.id in running or (before and sole(flight))
            flight.kills += proven and killed
            enough = flight.kills >= _KILLS if killed else flight.blamed >= _CONVICTED or (stalled and flight.alone)
            if proven and enough:
                poisoned.append(flight)
                del self._open[flight.id]
                continue
            if ran:
                more = min(flight.blamed + 1, SUSPECT) if killed else flight.blamed + 1
                flight.blamed = max(flight.blamed, more, SUSPECT if stalled else 0)
            if here:
                again.append(flight)
        return again, poisoned
