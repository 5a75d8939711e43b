"""A data set as its owner has it → what training reads, and a report about it: for jobs and for `hearth tune` alike. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.card import Card
from app.settings import Settings
from app.tasks import TASKS, Check, resolve
from app.tasks.base import Files
from app.tuning.archive import is_archive, unpack
from app.tuning.spec import Spec, one_task, possible
from app.weights import described_files, fetch

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".gz", "-ubyte")  # with one of these in it, a folder is a data set


def base_files(spec: Spec, card: Card, settings: Settings) -> Files:
    """The base model's files that the run needs: with its weights only where it starts from them. Raises WeightsError."""
    return described_files(card) if spec.start == "fresh" else fetch(card, settings, lambda *_: None)


def opened(dataset: Path, into: Path, card: Card) -> Path:
    """The folder in which the data lies, inside the empty folder `into`: an archive is unpacked, a folder and a plain table of
    texts are linked. Raises what `unpack` does.
    """
    if dataset.is_dir():
        hidden = shutil.ignore_patterns(".*", "__MACOSX")  # as in archives
        shutil.copytree(dataset, into, copy_function=link, ignore=hidden, dirs_exist_ok=True)
    elif TASKS[card.task].bare and not is_archive(dataset):
        link(dataset, into / "dataset")
    else:
        unpack(dataset, into)
    return strip(into)


def strip(folder: Path) -> Path:
    """Past folders that hold nothing but one folder: archives of a folder and of what is in it mean the same."""
    inside = list(folder.iterdir())
    while (
        len(inside) == 1
        and inside[0].is_dir()
        and any(path.is_dir() or path.name.lower().endswith(_TABLES) for path in inside[0].iterdir())
    ):
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def examine(root: Path, spec: Spec, card: Card, files: Files, cards: Iterable[Card], into: Path) -> dict[str, Any]:
    """The report (`tasks/__init__.py: Check`) and the `task` that the data is for; without problems, `into` holds what training
    reads. `card` and `files`: of the base model. Raises Conflict if one of `cards` has the name for another task.
    """
    told_by = TASKS[card.task].told_by
    task: str = spec.task or (resolve(told_by)(root) if told_by else None) or possible(spec, card.task)[0]
    one_task(spec.name, task, cards)
    check: Check = resolve(TASKS[task].check or "")
    return check(root, card, files, into, validation=spec.validation, seed=spec.seed) | {"task": task}


def link(source: Path | str, target: Path | str) -> None:
    """A second name for a file, or a copy where that cannot be."""
    try:
        os.link(os.path.realpath(source), target)  # of a link, what it leads to
    except OSError:
        shutil.copy2(source, target)
