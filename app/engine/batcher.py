"""Decide which waiting samples form the next batch. Knows nothing of sockets, clocks, arrays or torch.

A batch costs what the device pays: where samples are padded, its length times its dearest sample, else what they cost together.
The rule: the oldest sample always goes; then those nearest to it in cost (where nothing is padded: the next in age), as long as
the batch stays within `max_batch`, `max_cost` and what there is memory for; and within about half a second, where eight do not
take longer, so that nobody who comes waits long for it to end (longer, where most of that is the same for every batch). So age
beats fit and nothing starves.
A request of many samples lets others go first: all but the first of them count as younger than they are (`yields_s`). An idle
device takes what waits, at once, unless a `max_wait_s` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.engine.expected import Expected

_YIELDED = 0.125  # of the time allowed
_FEW = 8  # are a batch even if they take longer: what reads its weights for one sample as long as for many gets most of that
_BLIND = 16  # batches in a row that were cut alike; then a smaller one, after singles a larger one, tells what each costs


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample in the queue, as the rule sees it. Times in seconds on the caller's clock."""

    id: int
    cost: float
    arrived: float
    deadline: float
    alone: bool = False
    yields_s: float = 0.0

    @property
    def turn(self) -> float:
        """By which the queue is ordered."""
        return self.arrived + self.yields_s


def yields_s(before: int, max_batch: int, allowed_s: float) -> float:
    """How much younger a sample counts that has so many of its own request before it: up to an eighth of its time, from a full
    batch on. Of the two fifths that admission leaves free (`pool/admission.py`) the rest stays for what is uneven.
    """
    return _YIELDED * allowed_s * min(1.0, before / max_batch)


class Batcher:
    """The queue of one worker. `now` is passed in; ids must be unique while they wait."""

    def __init__(
        self, *, max_batch: int, max_cost: float, padded: bool = True, max_wait_s: float = 0.0, longest_s: float = math.inf
    ) -> None:
        """`longest_s`: of a batch of more than one sample, as far as it is known."""
        self._max_batch = max_batch
        self._max_cost = max_cost
        self._room = self._bound = max_cost
        self._padded = padded
        self._max_wait_s = max_wait_s
        self._longest_s = longest_s
        self._queue: dict[int, Waiting] = {}  # in order of arrival
        self._expected = Expected()
        self._cut = 0  # batches in a row that would have been too long with what waited
        self._yielding = False  # something that waits does, or lately did: else that is the order of turns

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sample: Waiting) -> bool:
        """Accept a sample, or return False: alone it would cost more than any batch may."""
        if sample.cost > self._max_cost:
            return False
        self._queue[sample.id] = sample
        self._yielding |= sample.yields_s > 0
        return True

    def too_much(self, cost: float) -> None:
        """The device had no memory for a batch of this cost: make none above half of it, except for one sample alone."""
        self._room = min(self._room, cost / 2)

    def hold_to(self, cost: float) -> None:
        """There is memory for batches of this cost now; one sample alone may try with more."""
        self._bound = cost

    def cost(self, batch: Sequence[Waiting]) -> float:
        """What the device pays for it."""
        return max(sample.cost for sample in batch) * len(batch) if self._padded else sum(sample.cost for sample in batch)

    def took(self, batch: Sequence[Waiting], seconds: float) -> None:
        """So long it ran, if all of it was answered."""
        self._expected.took(self.cost(batch), seconds)

    def cancel(self, id: int) -> bool:
        """Forget a sample. False if it does not wait here (any more)."""
        return self._queue.pop(id, None) is not None

    def expire(self, now: float) -> list[Waiting]:
        """Remove and return the samples whose deadline has passed."""
        late = [sample for sample in self._queue.values() if sample.deadline <= now]
        for sample in late:
            del self._queue[sample.id]
        return late

    def wait_s(self, now: float) -> float | None:
        """Seconds until a batch should be taken: 0 = now, None = nothing waits."""
        if not self._queue:
            return None
        if len(self._queue) >= self._max_batch:
            return 0.0
        oldest = next(iter(self._queue.values()))
        return max(0.0, oldest.arrived + self._max_wait_s - now)

    def next_batch(self) -> list[Waiting]:
        """Remove and return the next batch, dearest sample first; empty if nothing waits."""
        if not self._queue:
            return []
        queue = list(self._queue.values())
        if self._yielding:
            queue.sort(key=lambda sample: sample.turn)
        oldest, *others = queue
        batch = [oldest] if oldest.alone else self._gather(oldest, others)
        for sample in batch:
            del self._queue[sample.id]
        self._yielding &= bool(self._queue)
        return sorted(batch, key=lambda sample: -sample.cost)

    def _gather(self, oldest: Waiting, others: list[Waiting]) -> list[Waiting]:
        batch, dearest, total = [oldest], oldest.cost, oldest.cost
        quick, few, longest_s, before = self._expected.bound(), _FEW, self._longest_s, self._cut
        if before >= _BLIND and not self._expected.told:
            quick, few, longest_s, before = quick / 2, _FEW // 2, 2 * longest_s, 0
        self._cut = 0
        for sample in self._nearest(oldest, others):
            if len(batch) >= self._max_batch:
                break
            cost = (len(batch) + 1) * max(dearest, sample.cost) if self._padded else total + sample.cost
            if (cost > quick and len(batch) >= few) or self._expected.seconds(cost) > longest_s:
                self._cut = before + 1
            elif cost <= min(self._room, self._bound):
                batch.append(sample)
                dearest, total = max(dearest, sample.cost), total + sample.cost
        return batch

    def _nearest(self, oldest: Waiting, others: list[Waiting]) -> Iterable[Waiting]:
        company = (sample for sample in others if not sample.alone)
        if not self._padded:
            return company
        return sorted(company, key=lambda sample: abs(sample.cost - oldest.cost))  # stable: ties by age
