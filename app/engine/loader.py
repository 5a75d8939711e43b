"""Card and files → module on a device, in evaluation mode, fp32. Never reads the network, never unpickles objects."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import torch

from app.card import Card, FileSource, ModuleSource, PackageSource, TorchvisionSource
from app.errors import Invalid, ModelFailed
from app.tasks.base import Files

_UNUSED = ("masked_spec_embed", "position_ids")
"""What published weights leave out and inference does not need: what training masks with, and what is counted anyway."""


def load(card: Card, files: Files) -> torch.nn.Module:
    """Build the card's module and give it its weights.

    Raises ModelFailed when weights and module do not fit, naming the first keys that differ.
    """
    source = card.source
    if isinstance(source, ModuleSource):
        module = build(card)
        _give(module, files["weights"], card)
    elif isinstance(source, TorchvisionSource):
        module = _torchvision(source.entry)
        _give(module, files["weights"], card)
        module.labels = _published_labels(source)  # type: ignore[assignment]
    elif isinstance(source, FileSource | PackageSource) and source.architecture.startswith("torchvision:"):
        module = _torchvision(source.architecture.partition(":")[2])
        if isinstance(source, FileSource) and source.classes:
            give_classes(module, source.classes)
        _give(module, files["weights"], card)
    elif card.task == "text-classification":
        classes = source.classes if isinstance(source, FileSource) else None
        if classes is None:
            raise ModelFailed(
                f"{card.name}: a card for {card.task} is of kind 'file' and says in source.classes how many there are"
            )
        module = _text_classifier(card, files, classes)
    else:
        module = _transformers(card, files["config.json"].parent)
    return module.eval().requires_grad_(False)


def build(card: Card) -> torch.nn.Module:
    """The card's network with fresh weights: the class in `model.py` beside it, or what its `config.json` describes."""
    source = card.source
    if isinstance(source, FileSource) and source.architecture == "transformers":
        import transformers

        config = transformers.AutoConfig.from_pretrained(card.folder / source.path, local_files_only=True)
        auto = transformers.AutoModelForCTC if card.task == "speech-recognition" else transformers.AutoModel
        return cast(torch.nn.Module, auto.from_config(config))  # type: ignore[no-untyped-call]
    if not isinstance(source, ModuleSource):
        raise ModelFailed(f"{card.name}: a network without weights is built for cards of kind 'module' or 'file' alone")
    path = card.folder / "model.py"
    spec = importlib.util.spec_from_file_location(f"hearth_models.{card.name.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise ModelFailed(f"{card.name}: {path.name} cannot be imported")
    python = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(python)
    try:
        network = getattr(python, source.entry)
    except AttributeError as error:
        raise ModelFailed(f"{card.name}: model.py defines no {source.entry!r}; name the class in source.entry") from error
    module = cast(torch.nn.Module, network(**source.arguments))
    return give_classes(module, source.classes) if source.classes else module


def give_classes(module: torch.nn.Module, classes: int) -> torch.nn.Module:
    """Put a fresh last linear layer with so many outputs into an image model, in place. Raises Invalid if it has none."""
    from app.tasks.image.network import classifier

    last = classifier(module)
    if last is None:
        raise Invalid(f"only an nn.Linear can be made one of {classes} outputs, and this network has none; end it in one")
    fresh = torch.nn.Linear(last.in_features, classes, bias=last.bias is not None, device=last.weight.device)
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is last:
                setattr(parent, name, fresh)
    return module


def _torchvision(entry: str) -> torch.nn.Module:
    from torchvision import models

    options = {}
    if entry == "inception_v3":  # its published weights expect their own input scaling, as the builder sets it for them
        options = {"transform_input": True}
    with torch.device("meta"):  # no time spent on random weights
        return cast(torch.nn.Module, models.get_model(entry, weights=None, **options))


def _published_labels(source: TorchvisionSource) -> list[str]:
    from torchvision import models

    weights = models.get_model_weights(source.entry)[source.weights]
    return list(weights.meta["categories"])


def _give(module: torch.nn.Module, path: Path, card: Card) -> None:
    """Load `path` into `module`, strictly; half-precision storage becomes fp32."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        module.load_state_dict(state, assign=any(p.is_meta for p in module.parameters()))
    except RuntimeError as error:
        raise ModelFailed(f"{card.name}: {path.name} does not fit the network: {str(error)[:300]}") from error


def _text_classifier(card: Card, files: Files, classes: int) -> torch.nn.Module:
    """The encoder that `config.json` describes and a linear layer, whose weights lie in one file."""
    import transformers

    from app.tasks.text.network import TextClassifier

    config = transformers.AutoConfig.from_pretrained(files["config.json"].parent, local_files_only=True)
    encoder = transformers.AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    module = TextClassifier(without_pooler(encoder), classes)
    _give(module, files["model.safetensors"], card)
    return module


def without_pooler(encoder: torch.nn.Module) -> torch.nn.Module:
    """Mean pooling does not use BERT's: time and memory for nothing."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


def _transformers(card: Card, folder: Path) -> torch.nn.Module:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    auto = transformers.AutoModelForCTC if card.task == "speech-recognition" else transformers.AutoModel
    options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, loaded = auto.from_pretrained(folder, **options)
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler.") and not name.endswith(_UNUSED))
    if missing or loaded["mismatched_keys"]:
        wrong = ", ".join((missing or sorted(key for key, *_ in loaded["mismatched_keys"]))[:5])
        raise ModelFailed(f"{card.name}: model.safetensors does not fit config.json: {wrong} missing or of another shape")
    return without_pooler(model) if card.task == "text-embedding" else cast(torch.nn.Module, model)
