"""How fast a run goes, and how long it will take. Is told the time; asks no clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate


class Costs:
    """What batches cost, epoch by epoch, beside each other."""

    def __init__(self, of_batch: Callable[[int], float], epochs: int, batches: int) -> None:
        """`of_batch`: epoch, from 0 → of each of its batches, of which every epoch has so many."""
        self._each = [*map(of_batch, range(epochs)), 0.0]
        self._from = [batches * cost for cost in [*accumulate(reversed(self._each))][::-1]]

    def of(self, epoch: int, batches: int) -> float:
        """So many batches of this epoch; nothing after the last one."""
        return batches * self._each[epoch]

    def left(self, epoch: int, batches: int) -> float:
        """What comes after so many batches of this epoch."""
        return self._from[epoch] - self.of(epoch, batches)


class Pace:
    """Since the run began, or went on: what was done before is in no figure. Seconds throughout."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._samples = 0
        self._work = 0.0
        self._measurements = 0
        self._measuring = 0.0

    def trained(self, samples: int, work: float) -> None:
        """One step was done. `work`: its batches, each as dear as it is."""
        self._samples += samples
        self._work += work

    def measured(self, seconds: float) -> None:
        """The held-out part was measured. That is no training: it counts for the time left alone."""
        self._measurements += 1
        self._measuring += seconds

    def samples_per_s(self, now: float) -> float:
        """Samples trained on per second."""
        return self._samples / self._training(now)

    def seconds_left(self, now: float, work: float, measurements: int) -> float:
        """What so much work and so many measurements will take. A measurement costs nothing until one was made."""
        one = self._measuring / self._measurements if self._measurements else 0.0
        return (self._training(now) / self._work if self._work else 0.0) * work + one * measurements

    def _training(self, now: float) -> float:
        return max(1e-9, now - self._began - self._measuring)
