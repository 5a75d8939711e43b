"""Image classifiers: what is trained, and what becomes of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.card import Card, FileSource, ModuleSource, PackageSource, TorchvisionSource
from app.engine.loader import build, give_classes, load
from app.errors import Invalid
from app.tasks.base import Dataset, Files
from app.tasks.image.dataset import ImageDataset
from app.tasks.image.folders import prepared
from app.tasks.image.input import ImageInput
from app.tasks.image.network import ImageNetwork, classifier
from app.tuning.device import accelerator
from app.tuning.features import features, head_training
from app.tuning.run import Run, best, recipe
from app.tuning.spec import Spec
from app.tuning.trainer import Training


def begin(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """`tuning/run.py: Begin`, on what `folders.prepare` wrote.

    Before all weights learn, a new head does: a random one would spoil what the others know (arXiv:2202.10054). A checkpoint
    that will be restored knows all that.
    """
    labels: list[str] = report["classes"]
    module = load(card, files) if spec.start == "weights" else build(card)
    module.requires_grad_(True)
    if classifier(module).out_features != len(labels) or spec.start == "weights":
        give_classes(module, len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pixels are mapped from a file, to be read alone
        parts = {
            part: (torch.from_numpy(pixels), torch.from_numpy(targets)) for part, (pixels, targets) in prepared(folder).items()
        }
    pictures = len(parts["train"][1])
    head: Training | None = None
    if spec.start == "weights" and not (goes_on and spec.method == "full"):
        network = ImageNetwork(module.eval(), ImageInput(**card.input)).to(accelerator().device)
        vectors = {part: (features(network, pixels), targets) for part, (pixels, targets) in parts.items()}
        head = head_training(classifier(module), vectors, labels, spec, card.task)
        if spec.method == "head":
            return _run(card, module, head, labels)
        for _ in head:
            pass
    train, val = ((pixels.permute(0, 3, 1, 2), targets) for pixels, targets in (parts["train"], parts["val"]))
    augment = report.get("augment", True) if spec.augment is None else spec.augment
    dataset: Dataset = ImageDataset(train, val, labels, card, augment=augment, label_smoothing=spec.label_smoothing or 0.0)
    if spec.start == "fresh":
        dataset.prepare(module)
    module = module.to(memory_format=torch.channels_last)
    return _run(card, module, Training(module, dataset, recipe(spec, pictures), head.metrics if head else None), labels)


def _run(card: Card, module: torch.nn.Module, training: Training, labels: Sequence[str]) -> Run:
    code = {"model.py": card.folder / "model.py"} if isinstance(card.source, ModuleSource) else {}
    source = _source(card) | {"classes": len(labels)}
    return Run(
        card=card,
        module=module,
        training=training,
        source=source,
        outputs=("scores",),
        expected=best,
        labels=labels,
        parts=code,
    )


def _source(card: Card) -> dict[str, Any]:
    match card.source:
        case ModuleSource(entry=entry, arguments=arguments):
            return {"kind": "module", "entry": entry, "arguments": arguments}
        case TorchvisionSource(entry=entry):
            return {"kind": "file", "path": "weights.safetensors", "architecture": f"torchvision:{entry}"}
        case FileSource(architecture=architecture) | PackageSource(architecture=architecture):
            return {"kind": "file", "path": "weights.safetensors", "architecture": architecture}
        case _:
            raise Invalid(f"{card.name}: a model of this kind cannot be tuned")
