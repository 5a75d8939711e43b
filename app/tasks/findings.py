"""What checking a data set finds: problems that stop a job, and warnings that do not. Up to a bound, all at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_MOST_TOLD = 100  # problems


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

    def told(self) -> dict[str, Any]:
        """For the report."""
        return {
            "warnings": self.warnings,
            "problems": [asdict(problem) for problem in self.problems],
            "more_problems": self.untold,
        }
