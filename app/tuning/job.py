"""A job and its states. Plain values; `store.py` keeps them."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.card import Card
from app.catalogue import number_of
from app.errors import UnknownJob
from app.settings import jobs_folder

State = Literal["validating", "queued", "running", "succeeded", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("validating", "queued", "running")
DONE: tuple[State, ...] = ("succeeded", "failed", "cancelled")
LAST_EVENT = 2**31 - 1
"""Their numbers are PostgreSQL's integers."""

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
    """What repeats it, known once it is prepared: spec, hashes, versions, device, recipe. At the end also its metrics."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job. Numbers rise."""

    number: int
    kind: str
    at: float
    data: dict[str, Any]


def number(value: float | None) -> float:
    """What was no number is null in JSON."""
    return math.nan if value is None else value


def in_words(metrics: Mapping[str, float | None]) -> str:
    """`{"word_error_rate": 0.05}` → 5.00 % word error rate; correlations and losses, which are no shares, as they are."""
    return ", ".join(
        f"{number(value):.4f} {_PLAIN[name]}" if name in _PLAIN else f"{100 * number(value):.2f} % {name.replace('_', ' ')}"
        for name, value in metrics.items()
    )


def headline(metrics: Mapping[str, float | None]) -> str:
    """The first of them in words, which is what a model is known by; empty if there are none."""
    return in_words(dict(list(metrics.items())[:1]))


def version_of(home: Path, model: str, job: str) -> Path | None:
    """The folder of the version of `model` that this job made, if it is there."""
    return next((folder for folder in (home / "models").glob(f"{model}@*") if made_by(folder) == job), None)


def made_by(folder: Path) -> str:
    """The job that made the model in this folder; empty if none did, or there is none."""
    return str(tuned(folder).get("job", ""))


def unannounced(cards: Iterable[Card], home: Path) -> list[tuple[Card, float]]:
    """The versions that `hearth tune --as` made, the oldest first, each with the share of the traffic that its spec asks for.

    Of a job's versions the foreman tells. One that a later one replaces gets nothing.
    """
    found, replaced = [], set()
    for card in sorted(cards, key=lambda card: number_of(card.name), reverse=True):
        if told := tuned(card.folder):
            share = float(told.get("spec", {}).get("traffic", 1.0))
            if not (jobs_folder(home) / made_by(card.folder)).is_dir():
                found.append((card, 0.0 if card.model in replaced else share))
            if share >= 1:
                replaced.add(card.model)
    return found[::-1]


def tuned(folder: Path) -> dict[str, Any]:
    """What is told of how the model in this folder was made, with its metrics; empty if no run of ours made it."""
    try:
        told = json.loads((folder / "tuned.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def new_id() -> str:
    """A name that no other job has."""
    return secrets.token_hex(6)


def is_id(text: str) -> bool:
    """Whether `new_id` could have said so."""
    return re.fullmatch("[0-9a-f]{12}", text) is not None


def unknown(id: str) -> UnknownJob:
    """There is no job of this name."""
    return UnknownJob(f"there is no job {id!r}; GET /finetune lists them")
