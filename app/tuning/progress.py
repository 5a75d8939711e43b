"""What a run tells of itself, step by step. Plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

_FALLS = ("error_rate", "loss")  # the better the lower
_FALLEN = 0.98  # of what it was at the last gain: less is no longer worth waiting for


class Measured(TypedDict):
    """What the held-out part said of the weights after so many steps; epoch and step 0: of those that the run began with."""

    epoch: int
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a run. `metrics` are there when the held-out part was just measured; `best` is the best measurement so far."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    samples_per_s: float
    """Since the run began or went on, without the measurements."""
    seconds_left: float
    """With the measurements; less where `patience` ends the run."""
    metrics: dict[str, float] = field(default_factory=dict)
    best: Measured | None = None


def better(metrics: Mapping[str, float], than: Mapping[str, float], name: str = "") -> bool:
    """By the one of that name, else by the first, the headline: an error or a loss shall fall, all others rise."""
    name = name or next(iter(metrics))
    if name not in than:
        return True
    return metrics[name] < than[name] if name.endswith(_FALLS) else metrics[name] > than[name]


def surer(metrics: Mapping[str, float], than: Mapping[str, float], name: str = "") -> bool:
    """As good by that one, which soon stands still on a small held-out part, and of a lower loss."""
    name = name or next(iter(metrics))
    return metrics[name] == than.get(name) and "loss" in metrics and better(metrics, than, "loss")


@dataclass(slots=True)
class Waited:
    """Measurements without a gain, for `patience` to bear."""

    count: int = 0
    loss: float = math.inf
    """Of the last one with a gain."""

    def measured(self, metrics: Mapping[str, float], name: str = "", *, gained: bool) -> None:
        """A loss that falls well is a gain, too, while the one that counts is not perfect: of uneven classes a new head names the
        largest for several epochs, and no accuracy shows that it learns.
        """
        name = name or next(iter(metrics))
        perfect = metrics[name] <= 0 if name.endswith(_FALLS) else metrics[name] >= 1
        if gained or (not perfect and metrics.get("loss", math.inf) < _FALLEN * self.loss):
            self.count, self.loss = 0, metrics.get("loss", math.inf)
        else:
            self.count += 1
