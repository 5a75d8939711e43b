"""`hearth tune BASE --data PATH --as NAME`: what a job of POST /finetune does, by the same code, without a server."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console

from app.card import Card
from app.catalogue import Catalogue
from app.errors import Invalid
from app.settings import Settings
from app.tasks.base import Files
from app.tasks.findings import PROBLEM
from app.tuning import show
from app.tuning.archive import remove
from app.tuning.data import base_files, examine, opened
from app.tuning.device import accelerator, choose, meet
from app.tuning.job import new_id
from app.tuning.publish import publish
from app.tuning.room import held, sweep
from app.tuning.run import begin, measured, origin
from app.tuning.spec import Spec, filled, understood

_NAMED = 12  # classes


def tune(spec: Spec, data: Path, settings: Settings, console: Console) -> str:
    """Check the data, train, and put the next version of `spec.name` into `$HEARTH_HOME/models`; its key (empty but in the first
    process).

    `data`: a folder, an archive or a table of texts. Of several processes (`accelerate launch`) the first one checks, prints and
    writes. Raises Invalid naming everything that is wrong with the data, and what a job would fail with.
    """
    catalogue = Catalogue.read(settings.home)
    card = catalogue.named(spec.base)
    spec = understood(spec, card.task)
    files = base_files(spec, card, settings)
    choose(settings.devices)
    leads = accelerator().is_main_process
    if not leads:
        console = Console(quiet=True)
    settings.home.mkdir(parents=True, exist_ok=True)
    with _folder(settings.home) if leads else nullcontext(Path()) as own:
        checked = _checked(data, spec, card, files, catalogue, own) if leads else {}
        report, folder = broadcast_object_list([checked, own])
        spec = filled(spec, report["task"])
        _print(report, console)
        started = time.monotonic()
        torch.manual_seed(spec.seed)
        run = begin(card, files, spec, folder / "prepared", report)
        speed = show.follow(run.training, console)
        key = ""
        if leads:
            result = measured(run.training, time.monotonic() - started) | origin(spec, files) | run.shown
            key = publish(run, spec, folder / "prepared", result, new_id(), settings)
            show.table(console, f"{key}, tuned from {card.name}", result, speed, str(settings.home / "models" / key))
        meet()  # they may still read from the folder
        return key


@contextmanager
def _folder(home: Path) -> Iterator[Path]:
    """For what is made on the way. Those of other `hearth tune`s that were killed go."""
    sweep(home)
    folder = Path(tempfile.mkdtemp(prefix="tune-", dir=home))
    try:
        with held(folder):
            yield folder
    finally:
        remove(folder)


def _checked(data: Path, spec: Spec, card: Card, files: Files, catalogue: Catalogue, folder: Path) -> dict[str, Any]:
    """The report; what training reads is in `folder/prepared`. Raises Invalid with all problems."""
    for name in ("data", "prepared"):
        (folder / name).mkdir()
    root = opened(data, folder / "data", card)
    report = examine(root, spec, card, files, catalogue.cards.values(), folder / "prepared")
    lines = [PROBLEM.format(**problem) for problem in report["problems"]]
    if lines:
        more = [f"and {report['more_problems']} more"] if report["more_problems"] else []
        raise Invalid("\n".join([f"{data} cannot be trained on:", *lines, *more]))
    return report


def _print(report: dict[str, Any], console: Console) -> None:
    for part in ("train", "val"):
        held = report[part]
        counts = [f"{count:g} {name}" for name, count in held.items()] if isinstance(held, dict) else [str(held)]
        console.print(f"{part}: {', '.join(counts[:_NAMED])}{', …' if len(counts) > _NAMED else ''}")
    for warning in report["warnings"]:
        console.print(warning, style="yellow")
