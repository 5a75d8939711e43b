"""What must be reached, as the first release promises it: `--check` ends a program with 1 where a figure misses its bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """The range that a figure must stay in, both ends included."""

    least: float = float("-inf")
    most: float = float("inf")

    def missed_by(self, value: float) -> bool:
        """NaN, what was not measured, misses every bar."""
        return not self.least <= value <= self.most

    def __str__(self) -> str:
        return f"at most {self.most:g}" if self.most < float("inf") else f"at least {self.least:g}"


LOST = {"requests failed": Bar(most=0)}  # recovery.py holds this one without being asked
RECOVERY = LOST | {"recovery, s: median": Bar(most=1)}
COLD = {"seconds to ready, warm compute cache": Bar(most=6)}
OVER_BARE_MS = Bar(most=3)
STARTERS = {
    "test set": Bar(least=0.88),
    "test set, blurred": Bar(least=0.88),
    "photos": Bar(least=0.80),
    "digits": Bar(least=0.96),
    "speech, word error rate": Bar(most=0.05),
}

TUNED = {
    "photos": {"as served": Bar(least=0.97), "upload to live, s": Bar(most=240)},
    "sst2": {"as served": Bar(least=0.88), "training, s": Bar(most=600)},
    "stsb": {"test: after less before": Bar(least=0), "an answer's time over the base's": Bar(most=1.1)},
    "mnist": {"as served": Bar(least=0.975)},
    "digits-speech": {"as served": Bar(most=0.05)},
}
SOAK = LOST | {
    "jobs failed": Bar(most=0),
    "jobs succeeded": Bar(least=1),
    "faults a minute": Bar(least=1),
    "processes left": Bar(most=0),
    "passing processes at a time": Bar(most=8),
    "a fault was felt for, s": Bar(most=3),
    "memory_mib, growth an hour": Bar(most=0.10),
    "descriptors, growth an hour": Bar(most=0.05),
    "threads, growth an hour": Bar(most=0.05),
    "shared_mib, growth an hour": Bar(most=0.10),
    "within lives, growth an hour": Bar(most=0.25),
    # From the first quarter to the last of a frontend's ten minutes are seven: one a minute, of 15,000 requests, is more.
    "descriptors gained within a life": Bar(most=5),
    "threads gained within a life": Bar(most=2),
    "shared MiB gained while nobody is killed": Bar(most=2),
    "kinds not judged": Bar(most=0),
}
OVERLOAD = {
    "accepted p99 over the deadline": Bar(most=1),
    "accepted, but too late": Bar(most=0),
    "refused, p99 in ms": Bar(most=20),
    "refused without Retry-After": Bar(most=0),
    "without an answer, or with an error": Bar(most=0),
    "the generator overslept, p99 in ms": Bar(most=100),  # else what it measures is itself
    "let in of those who came back": Bar(least=0.95),
    "goodput at 10 x over that at 1 x": Bar(least=0.9),
    "goodput at 10 x over that at 2 x, 8 x elsewhere": Bar(least=0.9),
    "single texts answered beside others": Bar(least=1),
    "others too late that were let in": Bar(most=0),
    "their p99 over the deadline": Bar(most=1),
    "refused of the greedy one with a share": Bar(least=1),
}
BESIDE = LOST | {"p99 beside a job over alone": Bar(most=2)}


def missed(figures: Mapping[str, float], bars: Mapping[str, Bar]) -> list[str]:
    """One sentence for each bar that is missed: figure, what was measured, what must be."""
    values = {name: figures.get(name, float("nan")) for name in bars}
    return [f"{name}: {values[name]:.4g}, must be {bar}" for name, bar in bars.items() if bar.missed_by(values[name])]


def hold(figures: Mapping[str, float], bars: Mapping[str, Bar]) -> None:
    """Exit with status 1, all sentences on stderr, where a bar is missed."""
    if sentences := missed(figures, bars):
        sys.exit("\n".join(sentences))
