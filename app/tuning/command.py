"""`hearth tune NAME --data PATH`: recipe and card in; weights, labels and the measured accuracy out."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console

from app.card import Card
from app.engine.loader import build, load
from app.errors import Invalid
from app.tasks import TASKS, resolve
from app.tasks.base import Dataset, Files
from app.tuning import show
from app.tuning.device import described
from app.tuning.job import headline
from app.tuning.publish import save_weights
from app.tuning.recipe import Recipe
from app.tuning.run import measured
from app.tuning.trainer import Training

_PARTS = ("model.py", "config.json", "vocab.json", "tokenizer.json", "tune.toml")
"""What a tuned model needs of the one that it was made from, where it has it."""


def read_recipe(card: Card, overrides: Mapping[str, str]) -> tuple[Recipe, dict[str, Any]]:
    """`tune.toml` beside the card with `overrides` on top, and its table `data`: options of the task's dataset.

    An override `data.<name>` goes to that table, its value written as in TOML. Raises Invalid naming the key.
    """
    path = card.folder / "tune.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options: dict[str, Any] = values.pop("data", {})
    for name, value in overrides.items():
        table, _, option = name.rpartition(".")
        if table == "data":
            options[option] = _toml(name, value)
        else:
            values[name] = value
    try:
        return Recipe(**values), options
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(Recipe.model_fields)
        raise Invalid(": ".join(["recipe", *map(str, first["loc"]), f"{first['msg']}; known: {known}"])) from error


def _toml(name: str, value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f'recipe: {name}: {value} is no TOML value ({error}); write 0.1, [20, 24] or ["theo"]') from error


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

    `options`: for the dataset. `start`: files of the weights to start from; None: fresh ones. `out` gets the weights (stored
    in half precision), `labels.txt`, and a copy of the card that tells the accuracy. Of several processes (`accelerate launch`)
    the first one prints and writes.
    Raises Invalid where the task has no training yet, BadInput naming the file that cannot be read.
    """
    torch.manual_seed(recipe.seed)
    path = TASKS[card.task].dataset
    if path is None:
        raise Invalid(f"{card.name}: models for {card.task} cannot be tuned yet")
    dataset: Dataset = resolve(path)(data, card, **(options or {}))
    module = load(card, start).requires_grad_(True) if start else build(card)
    if not start:
        dataset.prepare(module)
    if card.task == "image-classification":
        module = module.to(memory_format=torch.channels_last)
    size = sum(parameter.numel() for parameter in module.parameters())
    started = time.monotonic()
    training = Training(module, dataset, recipe)
    if not training.leads:
        console = Console(quiet=True)
    where = " on {device} ({device_name})".format(**described(training.device))
    console.print(f"{card.name}: {size:,} parameters, {recipe.epochs} epochs, seed {recipe.seed}{where}")
    speed = show.follow(training, console)
    if training.leads:
        publish(card, module, dataset.labels, training.metrics, out)
    show.table(console, card.name, measured(training, time.monotonic() - started), speed, str(out))
    return training.metrics


def publish(card: Card, module: torch.nn.Module, labels: Sequence[str], metrics: Mapping[str, float], out: Path) -> None:
    """Write weights, labels and card into `out`, each beside and renamed, the card last."""
    out.mkdir(parents=True, exist_ok=True)
    name = card.source.weights if card.source.kind == "module" else "model.safetensors"
    digest = save_weights({key: _stored(value) for key, value in module.state_dict().items()}, out / name)
    if labels:
        _write(out / "labels.txt", "\n".join(labels) + "\n")
    for part in _PARTS:
        if (card.folder / part).exists() and out.resolve() != card.folder.resolve():
            _write(out / part, (card.folder / part).read_text(encoding="utf-8"))
    text = (card.folder / "card.toml").read_text(encoding="utf-8")
    _write(out / "card.toml", told(text, f"{headline(metrics)} on the held-out part", digest))


def told(card: str, accuracy: str, sha256: str) -> str:
    """The text of a card with this accuracy and hash; every other line stays as it was written."""
    card, found = re.subn(r"(?m)^(accuracy\s*=\s*).*$", lambda match: f'{match[1]}"{accuracy}"', card)
    if not found:
        card = re.sub(r"(?m)^\[about\][^\n]*$", lambda match: f'{match[0]}\naccuracy = "{accuracy}"', card)
    card = re.sub(r',\s*sha256\s*=\s*"[0-9a-f]{64}"', "", card)
    return re.sub(r"(?m)^(source\s*=\s*\{.*?)\s*\}\s*$", lambda match: f'{match[1]}, sha256 = "{sha256}" }}', card)


def _stored(value: torch.Tensor) -> torch.Tensor:
    """Half precision halves the file; the loader turns it back. Integers (counts) stay."""
    return value.half() if value.is_floating_point() else value


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
