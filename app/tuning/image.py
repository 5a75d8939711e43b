"""Image classifiers: what is trained, and what becomes of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch

from app.card import Card, FileSource, ModuleSource, PackageSource, TorchvisionSource
from app.engine.loader import build, give_classes, load
from app.errors import HearthError, Invalid
from app.logs import log
from app.tasks.base import Files
from app.tasks.image.dataset import ImageDataset
from app.tasks.image.folders import prepared
from app.tasks.image.input import ImageInput
from app.tasks.image.network import ImageNetwork, channels_of, classifier, outputs
from app.tuning import lora
from app.tuning.device import accelerator
from app.tuning.features import features, head_training
from app.tuning.run import Run, best, recipe
from app.tuning.spec import Spec
from app.tuning.trainer import Training

LEAST_SIDE = 128  # the smallest that arXiv:2104.00298 begins with


def begin(card: Card, files: Files, spec: Spec, folder: Path, report: dict[str, Any], *, goes_on: bool = False) -> Run:
    """`tuning/run.py: Begin`, on what `folders.prepare` wrote.

    Before other weights learn, a new head does: a random one would spoil what they know (arXiv:2202.10054). A checkpoint that
    will be restored knows all that.
    """
    labels: list[str] = report["classes"]
    module = load(card, files) if spec.start == "weights" else build(card)
    module.requires_grad_(True)
    _channels_last(module)
    source = _source(card) | _fitted(module, card, len(labels), fresh=spec.start == "fresh")
    layers = _layers(module, card) if spec.method == "lora" else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pixels are mapped from a file, to be read alone
        parts = {
            part: (torch.from_numpy(pixels), torch.from_numpy(targets)) for part, (pixels, targets) in prepared(folder).items()
        }
    pictures = len(parts["train"][1])
    head: Training | None = None
    if spec.start == "weights" and (spec.method == "head" or not goes_on):
        network = ImageNetwork(module.eval(), ImageInput(**card.input)).to(accelerator().device)
        vectors = {part: (features(network, pixels), targets) for part, (pixels, targets) in parts.items()}
        head = head_training(cast(torch.nn.Linear, classifier(module)), vectors, labels, spec, card.task)
        if spec.method == "head":
            return _run(card, module, head, labels, source)
        for _ in head:
            pass
    train, val = ((pixels.permute(0, 3, 1, 2), targets) for pixels, targets in (parts["train"], parts["val"]))
    augment = report.get("augment", True) if spec.augment is None else spec.augment
    chosen = recipe(spec, pictures)
    sides = small_first(module, ImageInput(**card.input), chosen.epochs, len(labels)) if spec.small_first else []
    smoothing, largest = spec.label_smoothing or 0.0, accelerator().num_processes if sides else 0
    dataset = ImageDataset(
        train, val, labels, card, augment=augment, sides=sides, largest_first=largest, label_smoothing=smoothing
    )
    if spec.start == "fresh":
        dataset.prepare(module)
    finish = lora.adapt(module, spec, layers)
    if layers:
        cast(torch.nn.Linear, classifier(module)).requires_grad_(True)
        _channels_last(module)
    training = Training(module, dataset, chosen, head.metrics if head else None, work=dataset.work)
    return _run(card, module, training, labels, source, finish, {"picture_sides": sides})


@torch.no_grad()
def small_first(module: torch.nn.Module, wanted: ImageInput, epochs: int, classes: int) -> list[int]:
    """Pictures are made smaller in the first two thirds of the epochs, to 160 pixels from 224: half the work there, and the last
    epochs see what will be asked (progressive resizing, arXiv:2104.00298, section 4). Not where that is small already, nor for a
    network that takes one size alone. Tried without numbers, on torch's meta device: that needs no memory, and says the same
    whenever and wherever a job goes on.
    """
    small = wanted.crop * 5 // 7 // 32 * 32
    if small < LEAST_SIDE or epochs < 2:
        return []
    weights = {id(one): torch.nn.Parameter(one.to("meta"), requires_grad=False) for one in module.parameters()}
    buffers = {id(one): one.to("meta") for one in module.buffers()}
    try:  # as in training: Inception then has a second head, which takes less
        tried = deepcopy(module, {**weights, **buffers}).train()  # the copy has these in their place
        said = tried(torch.empty(2, channels_of(wanted), small, small, device="meta"))
        scores = said if isinstance(said, torch.Tensor) else said[0]
        if scores.shape == (2, classes):
            return [small] * (epochs * 2 // 3)
        log.info("pictures of %d pixels give %s, not a score for each class: all epochs have the full size", small, scores.shape)
    except Exception as error:  # noqa: BLE001  whatever a network raises at a size that it does not take
        log.info("the network takes no pictures of %d pixels (%s): all epochs have the full size", small, str(error)[:200])
    return []


def _layers(module: torch.nn.Module, card: Card) -> str:
    """Those that LoRA teaches, as `lora.beside` says."""
    return lora.beside(module, cast(torch.nn.Linear, classifier(module)), lambda: outputs(module, ImageInput(**card.input)))


def _channels_last(module: torch.nn.Module) -> None:
    """Convolutions on a CPU and on tensor cores are faster so. Not `Module.to`, which raises at weights of five dimensions."""
    for weights in module.parameters():
        if weights.ndim == 4:  # out, in, height, width
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)


def _fitted(module: torch.nn.Module, card: Card, classes: int, *, fresh: bool) -> dict[str, Any]:
    """Give the module a new classifier for so many classes, unless it begins afresh and has as many outputs already: then it may
    be any network. What the new card's source says of it. Raises Invalid, before anything is computed, where that cannot be.
    """
    wanted = ImageInput(**card.input)
    channels = channels_of(wanted)
    asked = f"a picture [1, {channels}, {wanted.crop}, {wanted.crop}] must give scores [1, {classes}]"
    try:
        if fresh and outputs(module, wanted) == classes:
            return {"classes": card.source.classes} if isinstance(card.source, ModuleSource) and card.source.classes else {}
        if classifier(module) is None:
            raise Invalid(
                f"{card.name}: its classifier has to be made one for {classes} classes, and only an nn.Linear can be; end the "
                f'network in nn.Linear, or give it {classes} outputs of its own and start = "fresh", which takes any network'
            )
        give_classes(module, classes)
        found = outputs(module, wanted)
    except HearthError:
        raise
    except Exception as error:  # whatever the caller's network raises
        raise Invalid(f"{card.name}: {asked}; the network raised {type(error).__name__}: {str(error)[:200]}") from error
    if found != classes:
        raise Invalid(f"{card.name}: {asked}, by its last nn.Linear, which is replaced; define the classifier last")
    return {"classes": classes}


def _run(
    card: Card,
    module: torch.nn.Module,
    training: Training,
    labels: Sequence[str],
    source: dict[str, Any],
    finish: Callable[[], object] = lora.nothing,
    shown: dict[str, Any] | None = None,
) -> Run:
    code = {"model.py": card.folder / "model.py"} if isinstance(card.source, ModuleSource) else {}
    return Run(
        card=card,
        module=module,
        training=training,
        source=source,
        outputs=("scores",),
        expected=best,
        finish=finish,
        labels=labels,
        parts=code,
        shown=shown or {},
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
