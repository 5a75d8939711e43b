"""`hearth tune NAME --data PATH`: recipe and card in; weights, labels and the measured accuracy out."""

from __future__ import annotations

import hashlib
import re
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from app.card import Card
from app.engine.loader import build, load
from app.errors import Invalid
from app.tasks import TASKS, resolve
from app.tasks.base import Dataset, Files
from app.tuning.trainer import Recipe, train


def read_recipe(card: Card, overrides: Mapping[str, str]) -> tuple[Recipe, dict[str, Any]]:
    """`tune.toml` beside the card with `overrides` on top, and its table `data`: options of the task's dataset.

    Raises Invalid naming the key.
    """
    path = card.folder / "tune.toml"
    values = tomllib.loads(path.read_text()) if path.exists() else {}
    options = values.pop("data", {})
    try:
        return Recipe(**{**values, **overrides}), options
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(Recipe.model_fields)
        raise Invalid(f"recipe: {first['loc'][0]}: {first['msg']}; known: {known}") from error


def tune(
    card: Card,
    data: Path,
    out: Path,
    recipe: Recipe,
    console: Console,
    *,
    options: Mapping[str, Any] | None = None,
    start: Files | None = None,
) -> dict[str, float]:
    """Train the card's network on `data`, write the result into `out`, return the measured metrics.

    `options`: for the dataset. `start`: files of the weights to start from; None: fresh ones. `out` gets the weights (stored in half precision),
    `labels.txt`, and a copy of the card that tells the accuracy.
    """
    torch.manual_seed(recipe.seed)
    dataset: Dataset = resolve(TASKS[card.task].dataset or "")(data, card, **(options or {}))
    module = load(card, start).requires_grad_(True) if start else build(card)
    if card.task == "image-classification":
        module = module.to(memory_format=torch.channels_last)
    console.print(
        f"{card.name}: {sum(p.numel() for p in module.parameters()):,} parameters, {recipe.epochs} epochs, seed {recipe.seed}"
    )
    metrics: dict[str, float] = {}
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        row = bar.add_task("training", total=None)
        for progress in train(module, dataset, recipe):
            bar.update(row, total=progress.steps, completed=progress.step, description=f"loss {progress.loss:.3f}")
            if progress.metrics:
                metrics = progress.metrics
                spent = time.monotonic() - started
                bar.console.print(f"epoch {progress.epoch:3d}  loss {progress.loss:.3f}  {_words(metrics)}  {spent:.0f} s")
    publish(card, module, dataset.labels, metrics, out)
    console.print(f"{card.name}: {_words(metrics)} on the held-out part, {time.monotonic() - started:.0f} s → {out}")
    return metrics


def publish(card: Card, module: torch.nn.Module, labels: object, metrics: Mapping[str, float], out: Path) -> None:
    """Write weights, labels and card into `out`, each beside and renamed, the card last."""
    out.mkdir(parents=True, exist_ok=True)
    state = {key: _stored(value) for key, value in module.state_dict().items()}
    weights = "model.safetensors" if card.source.kind == "file" else "weights.safetensors"
    beside = out / f".{weights}.part"
    save_file(state, beside, metadata={"format": "pt"})
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    beside.chmod(0o644)  # safetensors makes it private; a server under another user reads it too
    beside.replace(out / weights)
    if isinstance(labels, list | tuple) and labels:
        _write(out / "labels.txt", "\n".join(labels) + "\n")
    if card.source.kind == "module" and out.resolve() != card.folder.resolve():
        _write(out / "model.py", (card.folder / "model.py").read_text())
    text = (card.folder / "card.toml").read_text()
    text = re.sub(r"(?m)^(accuracy\s*=\s*).*$", lambda m: f'{m[1]}"{_words(metrics)} on the held-out part"', text)
    text = re.sub(r',\s*sha256\s*=\s*"[0-9a-f]{64}"', "", text)
    text = re.sub(r"(?m)^(source\s*=\s*\{.*?)\s*\}\s*$", lambda m: f'{m[1]}, sha256 = "{digest}" }}', text)
    _write(out / "card.toml", text)


def _stored(value: torch.Tensor) -> torch.Tensor:
    """Half precision halves the file; the loader turns it back. Integers (counts) stay."""
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()


def _words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * value:.2f} % {name.replace('_', ' ')}" for name, value in metrics.items())


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
