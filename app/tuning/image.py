"""Image classifiers: what is trained, and what becomes of it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
import torch
from safetensors.torch import save_file

from app.card import Card, FileSource, ModuleSource, PackageSource, TorchvisionSource
from app.catalogue import read_card
from app.engine.loader import build, give_classes, load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.errors import Conflict, HearthError, Invalid
from app.tasks.base import Dataset, Files
from app.tasks.image.codec import ImageCodec
from app.tasks.image.dataset import ImageDataset
from app.tasks.image.folders import prepared
from app.tasks.image.input import ImageInput
from app.tasks.image.network import ImageNetwork, classifier
from app.tasks.image.program import ImageProgram
from app.tuning.archive import remove
from app.tuning.features import Features, features
from app.tuning.job import in_words, made_by
from app.tuning.spec import Spec, filled
from app.tuning.trainer import Recipe, Training


@dataclass(frozen=True, slots=True)
class Run:
    """A training, and the whole module that it is for."""

    card: Card
    module: torch.nn.Module
    training: Training


def begin(card: Card, files: Files, spec: Spec, folder: Path, labels: Sequence[str], *, goes_on: bool = False) -> Run:
    """Build what the spec says on the data in `folder` (`folders.prepare`). Raises Invalid where it cannot be.

    Before all weights learn, a new head does: a random one would spoil what the others know (arXiv:2202.10054). `goes_on`: a
    checkpoint will be restored, which knows all that.
    """
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
        network = ImageNetwork(module.eval(), ImageInput(**card.input))
        vectors = {part: (features(network, pixels), targets) for part, (pixels, targets) in parts.items()}
        wanted = spec if spec.method == "head" else filled(Spec(name=spec.name, base=spec.base, method="head", seed=spec.seed))
        dataset: Dataset = Features(vectors["train"], vectors["val"], labels, wanted.label_smoothing or 0.0)
        head = Training(classifier(module), dataset, _recipe(wanted, pictures))
        if spec.method == "head":
            return Run(card, module, head)
        for _ in head:
            pass
    train, val = ((pixels.permute(0, 3, 1, 2), targets) for pixels, targets in (parts["train"], parts["val"]))
    dataset = ImageDataset(train, val, labels, card, augment=bool(spec.augment), label_smoothing=spec.label_smoothing or 0.0)
    if spec.start == "fresh":
        dataset.prepare(module)
    module = module.to(memory_format=torch.channels_last)
    return Run(card, module, Training(module, dataset, _recipe(spec, pictures), head.metrics if head else None))


def _recipe(spec: Spec, pictures: int) -> Recipe:
    """No batch is larger than the data."""
    known = spec.model_dump(include=set(Recipe.model_fields), exclude_none=True)
    return Recipe(**(known | {"batch_size": max(1, min(known["batch_size"], pictures))}))


def write(run: Run, spec: Spec, labels: Sequence[str], prepared: Path, result: dict[str, Any]) -> Path:
    """Write the model beside `prepared`: weights, card, labels, a sample and the answer to it."""
    beside = prepared.parent / "model" / spec.name
    remove(beside)
    beside.mkdir(parents=True)
    state = {key: value.detach().contiguous().clone() for key, value in run.module.state_dict().items()}
    weights = beside / "weights.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private; a server under another user reads it too
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (code := run.card.folder / "model.py").exists():
        (beside / code.name).write_bytes(code.read_bytes())
    (beside / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    sample = next(prepared.glob("sample.*"))
    (beside / sample.name).write_bytes(sample.read_bytes())
    (beside / "card.toml").write_text(tomli_w.dumps(_card(run.card, spec, labels, digest, result)), encoding="utf-8")
    said = _says(read_card(beside), sample.read_bytes(), beside)
    (beside / "expected.json").write_bytes(msgspec.json.encode(said))
    (beside / "tuned.json").write_bytes(msgspec.json.encode(result))
    return beside


def move_in(made: Path, target: Path, job: str) -> None:
    """Into `$HEARTH_HOME/models`. What this job put there before is replaced. Raises Conflict for anything else that is there."""
    if target.exists() and made_by(target) != job:
        raise Conflict(f"a model called {target.name!r} has come into being meanwhile; move it away, then resume the job")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    made.rename(target)


def _card(card: Card, spec: Spec, labels: Sequence[str], digest: str, result: dict[str, Any]) -> dict[str, Any]:
    match card.source:
        case ModuleSource(entry=entry, arguments=arguments):
            source: dict[str, Any] = {"kind": "module", "entry": entry, "arguments": arguments}
        case TorchvisionSource(entry=entry):
            source = {"kind": "file", "path": "weights.safetensors", "architecture": f"torchvision:{entry}"}
        case FileSource(architecture=architecture) | PackageSource(architecture=architecture):
            source = {"kind": "file", "path": "weights.safetensors", "architecture": architecture}
        case _:
            raise Invalid(f"{card.name}: a model of this kind cannot be tuned")
    return {
        "task": card.task,
        "source": source | {"sha256": digest, "classes": len(labels)},
        "input": {name: list(value) if isinstance(value, tuple) else value for name, value in card.input.items()},
        "limits": card.limits.model_dump(),
        "serving": {"precision": card.serving.precision, "resident": True},
        "about": {
            "title": f"{spec.name}, tuned from {card.name}",
            "licence": card.about.licence,
            "accuracy": f"{in_words(result['metrics'])} on the held-out part",
        },
    }


def _says(card: Card, sample: bytes, folder: Path) -> dict[str, Any]:
    """What it answers to its sample: proof that what was written can be served."""
    codec = ImageCodec(card, {"labels.txt": folder / "labels.txt"}, {})
    decoded = codec.decode(sample)
    program = ImageProgram(card, {})
    module = load(card, {"weights": folder / "weights.safetensors"})
    (output,) = Runner(eager(program, module), program, lambda *_: None).run([one.arrays for one in decoded.samples])
    if isinstance(output, HearthError):
        raise output
    best = codec.interpret(decoded, [{"scores": output["scores"]}], top_k=1)["predictions"][0]
    return {"label": best["label"], "index": best["index"]}
