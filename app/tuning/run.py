"""A run: what a job trains, and what it takes to write it down. Each task begins its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from app.card import Card
from app.tasks import resolve
from app.tasks.base import Files
from app.tuning.device import described, versions
from app.tuning.recipe import Recipe
from app.tuning.spec import Spec
from app.tuning.trainer import Training
from app.weights import sha256

_BEGIN = {
    "image-classification": "app.tuning.image:begin",
    "speech-recognition": "app.tuning.speech:begin",
    "text-classification": "app.tuning.text:begin_classifier",
    "text-embedding": "app.tuning.text:begin_embedding",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training, and the model that it is for."""

    card: Card
    """Of the model that it starts from."""
    training: Training
    module: nn.Module
    """All that is written, of which `training` may teach a part."""
    source: dict[str, Any]
    """The new card's, but for the hash of its weights."""
    outputs: tuple[str, ...]
    """What the task's endpoint asks the program for."""
    expected: Callable[[dict[str, Any]], dict[str, Any]]
    """An answer to the sample → what of it stands in `expected.json`."""
    task: str = ""
    """If not the card's own."""
    finish: Callable[[], object] = lambda: None
    """What is to be done to `module` between training and writing."""
    labels: Sequence[str] = ()
    parts: Mapping[str, Path] = field(default_factory=dict)
    """Files that the new model needs beside its card: name → where to copy it from."""
    shown: dict[str, Any] = field(default_factory=dict)
    """What was chosen by looking at the network, for the job's result."""


class Begin(Protocol):
    """What each task offers."""

    def __call__(self, card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool) -> Run:
        """Build what the spec says on the data in `folder`, of which the task's `Check` gave `report`. `goes_on`: a checkpoint
        will be restored. Raises Invalid where it cannot be.
        """
        ...


def begin(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """As the task does that the new model is for."""
    start: Begin = resolve(_BEGIN[report["task"]])
    return start(card, files, spec, folder, report, goes_on=goes_on)


def measured(training: Training, seconds: float) -> dict[str, Any]:
    """What a training that ended has reached, where, by which recipe."""
    return {"metrics": training.metrics, "best": training.best, "seconds": round(seconds, 1), **place(training)}


def place(training: Training) -> dict[str, Any]:
    """Where it computes, by which recipe."""
    return {**described(training.device), "threads": torch.get_num_threads(), "recipe": training.recipe.model_dump()}


def origin(spec: Spec, files: Files) -> dict[str, Any]:
    """What else it takes to repeat a run. `files`: of the base model."""
    return {
        "spec": spec.model_dump(),
        "base_sha256": {name: sha256(path) for name, path in sorted(files.items())},
        "versions": versions(),
    }


def recipe(spec: Spec, samples: int) -> Recipe:
    """What of the spec is the trainer's. No batch is larger than the data."""
    known = spec.model_dump(include=set(Recipe.model_fields), exclude_none=True)
    known["batch_size"] = max(1, min(known["batch_size"], samples))
    if spec.precision == "auto":
        known["precision"] = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    return Recipe(**known)


def best(answer: dict[str, Any]) -> dict[str, Any]:
    """What `expected.json` says of a classifier's answer."""
    first = answer["predictions"][0]
    return {"label": first["label"], "index": first["index"]}
