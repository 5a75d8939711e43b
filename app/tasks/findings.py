"""What checking a data set finds: problems that stop a job, and warnings that do not. Up to a bound, all at once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_MOST_TOLD = 100  # problems
_ENOUGH = 10_000  # of them, after which nothing further is looked at
_UNEVEN = 10  # times as many samples in the largest class as in the smallest, from which on it is told

PROBLEM = "{where}: {what}; {remedy}"
"""How one is told in a line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. `where` is a path inside the data set, or a file and line."""

    where: str
    what: str
    remedy: str


@dataclass(slots=True)
class Findings:
    """As a job's report tells them."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    untold: int = 0

    def wrong(self, where: str, what: str, remedy: str) -> None:
        """Note a problem, up to a bound; the others are counted."""
        if len(self.problems) < _MOST_TOLD:
            self.problems.append(Problem(where, what, remedy))
        else:
            self.untold += 1

    @property
    def enough(self) -> bool:
        """So much is wrong that nobody is helped by more of it."""
        return len(self.problems) + self.untold >= _ENOUGH

    def told(self) -> dict[str, Any]:
        """For the report."""
        return {
            "warnings": self.warnings,
            "problems": [asdict(problem) for problem in self.problems],
            "more_problems": self.untold,
        }


def split(targets: Sequence[int], validation: float, seed: int) -> tuple[list[int], list[int]]:
    """Which samples learn and which are kept out: of each class the same share, at least one where it has two. Seeded."""
    random = np.random.default_rng(seed)
    by_class: dict[int, list[int]] = defaultdict(list)
    for place, target in enumerate(targets):
        by_class[target].append(place)
    train: list[int] = []
    val: list[int] = []
    for _, places in sorted(by_class.items()):
        order = random.permutation(len(places))
        kept_out = min(len(places) - 1, max(1, round(validation * len(places))))
        val += [places[index] for index in sorted(order[:kept_out])]
        train += [places[index] for index in sorted(order[kept_out:])]
    return train, val


def originals(paths: Sequence[Path]) -> list[int]:
    """For each file the place of the first one that holds the same bytes. Of files of a size of their own nothing is read."""
    sizes = [path.stat().st_size for path in paths]
    shared = Counter(sizes)
    first: dict[tuple[int, str], int] = {}
    found = []
    for place, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        with path.open("rb") as file:
            held = hashlib.file_digest(file, "sha256").hexdigest() if shared[size] > 1 else ""
        found.append(first.setdefault((size, held), place))
    return found


def weigh(counts: Mapping[int, int], labels: Sequence[str], things: str, found: Findings) -> None:
    """Classes that cannot be learnt, or only with difficulty. `counts`: samples to learn from; `things`: what they are called."""
    for target, label in enumerate(labels):
        if not counts.get(target):
            found.wrong(label, f"has no {things.removesuffix('s')} to train on", "add some, or take the class out")
    if counts and max(counts.values()) > _UNEVEN * min(counts.values()):
        (most, many), *_, (least, few) = Counter(counts).most_common()
        found.warnings.append(f"uneven classes: {many} {things} of {labels[most]!r}, {few} of {labels[least]!r}")
