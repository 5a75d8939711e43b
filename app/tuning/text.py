"""Text models: what is trained, and what becomes of it. An embedding model becomes a better one, or a classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.card import Card
from app.engine.loader import load
from app.tasks.base import Files
from app.tasks.text.dataset import Labelled, Scored, TextDataset, Texts, Triplets
from app.tasks.text.examples import prepared
from app.tasks.text.network import TextClassifier
from app.tasks.text.program import TextProgram
from app.tuning import lora
from app.tuning.features import head_training
from app.tuning.run import Run, best, recipe
from app.tuning.spec import Spec
from app.tuning.trainer import Training

_FIRST = 4096  # texts from which a head learns before all weights do; it need not be good
_FILES = ("config.json", "tokenizer.json")
_SOURCE = {"kind": "file", "path": ".", "architecture": "transformers"}


def begin_classifier(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """`tuning/run.py: Begin`. Before all weights learn, a new head does (`tuning/image.py` says why), on some of the texts."""
    labels: list[str] = report["classes"]
    base = load(card, files)
    module = TextClassifier(base.encoder if isinstance(base, TextClassifier) else base, len(labels)).requires_grad_(True)
    program, train, val, options = _data(card, spec, folder)
    dataset = Labelled(program, train, val, labels, label_smoothing=spec.label_smoothing or 0.0, **options)
    head: Training | None = None
    if spec.method == "head" or not goes_on:
        most = len(train) if spec.method == "head" else _FIRST
        seen = {"train": dataset.learnt(module.eval(), most), "val": dataset.held_out(module)}
        vectors = {part: (rows[:, 0], targets.long()) for part, (rows, targets) in seen.items()}
        head = head_training(module.classifier, vectors, labels, spec, "text-classification")
    finish: Callable[[], object] = lora.nothing
    if head is not None and spec.method == "head":
        training = head
    else:
        for _ in head or ():
            pass
        finish = lora.adapt(module.encoder, spec)
        training = Training(module, dataset, recipe(spec, dataset.steps(1)), head.metrics if head else None)
    return Run(
        card=card,
        module=module,
        training=training,
        source=_SOURCE | {"classes": len(labels)},
        outputs=("scores",),
        expected=best,
        task="text-classification",
        finish=finish,
        labels=labels,
        parts={name: files[name] for name in _FILES},
    )


def begin_embedding(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """`tuning/run.py: Begin`. What the base model measures is the mark: weights that do not beat it are not kept."""
    module = load(card, files).requires_grad_(True)
    program, train, val, options = _data(card, spec, folder)
    kind: type[TextDataset] = Scored if report["kind"] == "pairs" else Triplets
    dataset = kind(program, train, val, **options)
    reached = None if goes_on else dataset.score(module)
    finish = lora.adapt(module, spec)
    return Run(
        card=card,
        module=module,
        training=Training(module, dataset, recipe(spec, dataset.steps(1)), reached),
        source=_SOURCE,
        outputs=("embedding",),
        expected=_begins,
        finish=finish,
        parts={name: files[name] for name in _FILES},
    )


def _begins(answer: dict[str, Any]) -> dict[str, Any]:
    vector = answer["embedding"]
    return {"dimensions": len(vector), "begins": [round(float(value), 6) for value in vector[:8]]}


def _data(card: Card, spec: Spec, folder: Path) -> tuple[TextProgram, Texts, Texts, dict[str, int]]:
    parts = prepared(folder)
    program = TextProgram(card, {})
    program.padded = True  # batches of nearly equal lengths hold hardly any padding, and every architecture takes them
    train, val = Texts(parts["train"]), Texts(parts["val"])
    return program, train, val, {"per_epoch": spec.per_epoch or len(train), "seed": spec.seed}
