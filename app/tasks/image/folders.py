"""A folder of pictures that a caller sent → what to train on, and everything that is wrong with it. No torch.

Understood: one folder per class; the same inside `train/` and `val/`; pictures and a CSV with the columns `file`, `label` and, if
wanted, `split` (train or val), or one for each part; or MNIST's four idx files.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.card import Card
from app.errors import HearthError
from app.tasks import table
from app.tasks.base import Files
from app.tasks.findings import Findings, originals, split, weigh
from app.tasks.image import idx
from app.tasks.image.codec import ImageCodec
from app.tasks.media import no_picture
from app.tasks.table import SPLITS


@dataclass(slots=True)
class Found(Findings):
    """What a data set holds."""

    labels: list[str] = field(default_factory=list)
    train: list[tuple[Path, int]] = field(default_factory=list)
    val: list[tuple[Path, int]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """As a job shows it."""
        of_part = {part: Counter(target for _, target in items) for part, items in (("train", self.train), ("val", self.val))}
        counts = {part: {label: of[index] for index, label in enumerate(self.labels)} for part, of in of_part.items()}
        return {"classes": self.labels, **counts, **self.told()}


def check(root: Path, card: Card, files: Files, into: Path, *, validation: float, seed: int) -> dict[str, Any]:
    """Find and decode everything in `root`; returns the report (`app/tasks/__init__.py: Check`)."""
    if idx.is_idx(root):
        return _check_idx(root, card, into)
    found = find(root, validation, seed)
    if found.problems:
        for _ in decode(found, root, card):  # what cannot be read is told with the rest
            pass
    else:
        prepare(found, root, card, into)
    if not found.problems:
        picture = found.val[0][0]
        (into / f"sample{picture.suffix.lower() or '.picture'}").write_bytes(picture.read_bytes())
    return found.report()


def _check_idx(root: Path, card: Card, into: Path) -> dict[str, Any]:
    found = Found()
    parts = idx.read(root, found)
    values = sorted({value for _, targets in parts.values() for value in np.unique(targets).tolist()})
    found.labels = [str(value) for value in values]
    targets = {part: np.searchsorted(values, labels).tolist() for part, (_, labels) in parts.items()}
    found.train, found.val = ([(root, target) for target in targets.get(part, ())] for part in ("train", "val"))
    if not found.problems:
        weigh(Counter(target for _, target in found.train), found.labels, "pictures", found)
        known = {hashlib.sha256(picture).digest() for picture in parts["train"][0]}
        _repeated(sum(hashlib.sha256(picture).digest() in known for picture in parts["val"][0]), found)
    if not found.problems:
        pixels = {part: idx.as_served(pictures, card) for part, (pictures, _) in parts.items()}
        keep(
            ((part, target, picture) for part in parts for target, picture in zip(targets[part], pixels[part], strict=True)),
            {part: len(targets[part]) for part in parts},
            into,
        )
        Image.fromarray(parts["val"][0][0]).save(into / "sample.png")
    return found.report() | {"augment": False}  # characters: mirrored or turned, they are others


def find(root: Path, validation: float, seed: int) -> Found:
    """Which pictures there are and what they show. Without a split of its own, that share of each class is kept out."""
    found, root = Found(), root.resolve()
    listed = table.tables(root)
    parts = _of_tables(listed, root, found) if listed else _of_folders(root, found)
    found.labels = sorted({label for items in parts.values() for _, label in items})
    index = {label: number for number, label in enumerate(found.labels)}
    found.train = [(path, index[label]) for path, label in parts["train"]]
    found.val = [(path, index[label]) for path, label in parts["val"]]
    for label in found.labels:
        if label.splitlines() != [label]:
            found.wrong(label, "has a line break in its name", "rename the class")
    if len(found.labels) < 2:
        found.wrong(
            ".", f"{len(found.labels)} classes were found", "give at least two: one folder per class, or a CSV of file and label"
        )
    elif not parts["val"]:
        _split(found, validation, seed)
    weigh(Counter(target for _, target in found.train), found.labels, "pictures", found)
    return found


def _of_folders(root: Path, found: Found) -> dict[str, list[tuple[Path, str]]]:
    parts: dict[str, list[tuple[Path, str]]] = {"train": [], "val": []}
    table.not_read([str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and no_picture(path)], found)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    parted = {path: SPLITS[path.name.lower()] for path in folders if path.name.lower() in SPLITS}
    if parted and len(parted) == len(folders) and "train" in parted.values():
        role = table.role_of_test(parted.values(), "test/ is", found)
        for path, said in parted.items():
            if part := role if said == "test" else said:
                parts[part] += _classes(path, root, found)
    else:
        parts["train"] = _classes(root, root, found)
    return parts


def _classes(folder: Path, root: Path, found: Found) -> list[tuple[Path, str]]:
    pictures = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if not path.is_file() or no_picture(path):
            continue
        if len(inside) == 1:
            found.wrong(
                str(path.relative_to(root)), "lies in no class folder", "move it into the folder of its class, or leave it out"
            )
        elif len(inside) > 2:
            found.wrong(
                str(path.relative_to(root)),
                "lies in a folder inside a class folder",
                "put a class's pictures straight into its folder",
            )
        else:
            pictures.append((path, inside[0]))
    return pictures


def _of_tables(listed: list[Path], root: Path, found: Found) -> dict[str, list[tuple[Path, str]]]:
    parts: dict[str, list[tuple[Path, str]]] = {"train": [], "val": []}
    others = {path for path in root.rglob("*") if path.is_file() and not no_picture(path)}
    for row in table.read(listed, {"file": "file", "label": "label"}, found):
        name, label = row.fields["file"], row.fields["label"]
        picture = table.inside(root, name)
        others -= {picture}
        if row.part is None:
            continue
        if not label:
            found.wrong(row.where, "has no label", "say what the picture shows")
        elif picture is None:
            found.wrong(row.where, f"{name!r} is not in the archive", "write the path as it is inside the archive")
        else:
            parts[row.part].append((picture, label))
    table.unnamed([str(path.relative_to(root)) for path in others], "pictures have no row", found)
    return parts


def _split(found: Found, validation: float, seed: int) -> None:
    """The same share of each class; the same picture again goes where the first one goes."""
    items = found.train
    first = originals([path for path, _ in items])
    once = sorted(set(first))
    for target, count in sorted(Counter(items[place][1] for place in once).items()):
        if count < 2:
            found.wrong(
                found.labels[target], "has one picture", "give at least two of each class: one to learn from, one to check with"
            )
    held = {once[place] for place in split([items[place][1] for place in once], validation, seed)[1]}
    found.train = [item for item, place in zip(items, first, strict=True) if place not in held]
    found.val = [item for item, place in zip(items, first, strict=True) if place in held]


def decode(found: Found, root: Path, card: Card) -> Iterator[tuple[str, int, np.ndarray]]:
    """Each readable picture as ("train" or "val", target, pixels as in service). Notes those that are not, and repetitions."""
    codec, root = ImageCodec(card, {}, {}), root.resolve()
    seen: dict[str, tuple[str, int]] = {}
    across = 0
    for part, items in (("train", found.train), ("val", found.val)):
        for path, target in items:
            name = str(path.relative_to(root))
            raw = path.read_bytes()
            before = seen.setdefault(hashlib.sha256(raw).hexdigest(), (part, target))
            if before[1] != target:
                found.wrong(name, f"is also filed under {found.labels[before[1]]!r}", "keep it in one class")
            across += before[0] != part
            try:
                yield part, target, codec.decode(raw).samples[0].arrays["pixels"]
            except HearthError as error:
                found.wrong(name, error.detail, "repair it, or take it out of the data set")
    _repeated(across, found)


def _repeated(across: int, found: Found) -> None:
    if across:
        found.warnings.append(f"{across} pictures of val are also in train: what is measured is too kind by their share")


def prepare(found: Found, root: Path, card: Card, into: Path) -> None:
    """Decode all once and keep the pixels."""
    keep(decode(found, root, card), {"train": len(found.train), "val": len(found.val)}, into)


def keep(pictures: Iterable[tuple[str, int, np.ndarray]], counts: Mapping[str, int], into: Path) -> None:
    """Write what `decode` gives: `{train,val}.npy` uint8 [N, H, W, C], N of `counts`, and `{train,val}_targets.npy` int64 [N]."""
    targets: dict[str, list[int]] = {"train": [], "val": []}
    sinks: dict[str, Any] = {}
    for part, target, picture in pictures:
        if part not in sinks:
            sinks[part] = np.lib.format.open_memmap(into / f"{part}.npy", "w+", np.uint8, (counts[part], *picture.shape))
            if hasattr(os, "posix_fallocate"):  # a full disk is told now; later, writing into the map would end the process
                with (into / f"{part}.npy").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, (into / f"{part}.npy").stat().st_size)
        sinks[part][len(targets[part])] = picture
        targets[part].append(target)
    for part, sink in sinks.items():
        sink.flush()
        np.save(into / f"{part}_targets.npy", np.array(targets[part], np.int64))


def prepared(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `prepare` wrote, mapped into memory: part → pixels and targets."""
    return {
        part: (np.load(folder / f"{part}.npy", mmap_mode="r"), np.load(folder / f"{part}_targets.npy"))
        for part in ("train", "val")
    }
