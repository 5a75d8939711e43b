"""A job and its states. Plain values; `store.py` keeps them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["validating", "queued", "running", "succeeded", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("validating", "queued", "running")
DONE: tuple[State, ...] = ("succeeded", "failed", "cancelled")

_PLAIN = {"spearman": "Spearman", "loss": "loss"}  # metrics that are no shares → what they are called


@dataclass(frozen=True, slots=True)
class Job:
    """One row."""

    id: str
    model: str
    state: State
    reason: str
    created: float
    updated: float
    spec: dict[str, Any]
    report: dict[str, Any]
    """What was found in the data: classes, counts, problems, warnings."""
    progress: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job. Numbers rise."""

    number: int
    kind: str
    at: float
    data: dict[str, Any]


def in_words(metrics: Mapping[str, float]) -> str:
    """`{"word_error_rate": 0.05}` → 5.00 % word error rate; correlations and losses, which are no shares, as they are."""
    return ", ".join(
        f"{value:.4f} {_PLAIN[name]}" if name in _PLAIN else f"{100 * value:.2f} % {name.replace('_', ' ')}"
        for name, value in metrics.items()
    )


def headline(metrics: Mapping[str, float]) -> str:
    """The first of them in words, which is what a model is known by; empty if there are none."""
    return in_words(dict(list(metrics.items())[:1]))


def version_of(home: Path, model: str, job: str) -> Path | None:
    """The folder of the version of `model` that this job made, if it is there."""
    return next((folder for folder in (home / "models").glob(f"{model}@*") if made_by(folder) == job), None)


def made_by(folder: Path) -> str:
    """The job that made the model in this folder; empty if none did, or there is none."""
    try:
        return str(json.loads((folder / "tuned.json").read_bytes()).get("job", ""))
    except (OSError, ValueError):
        return ""


def new_id() -> str:
    """A name that no other job has."""
    return secrets.token_hex(6)
