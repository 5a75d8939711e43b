"""MNIST's four idx files → pictures and labels. What is wrong with them is noted, not raised. No torch.

Y. LeCun's format, gzipped as he has it or unpacked: two zero bytes, one for the type of the values, one for the count of
dimensions; a big-endian size for each; then the values.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from app.card import Card
from app.tasks.findings import Findings
from app.tasks.image.codec import ImageCodec
from app.tasks.image.input import ImageInput
from app.tasks.table import Part

_NAMES: dict[Part, str] = {"train": "train", "val": "t10k"}  # part → how its two files are called
_BYTES = 0x08  # the type of the values
_MOST = 4 << 30  # bytes of all four, which lie in memory
_RATIO = 200  # unpacked over packed at most; MNIST has 5, a bomb 1000
_AGAIN = "download it again"


def is_idx(root: Path) -> bool:
    """Whether the data set in this folder is one of idx files."""
    return any(path.is_file() for kind in ("", ".gz") for path in root.glob(f"*-ubyte{kind}"))


def read(root: Path, found: Findings) -> dict[Part, tuple[np.ndarray, np.ndarray]]:
    """Part → pictures uint8 [N, H, W] and labels uint8 [N], of one size and number, unless a problem is noted."""
    parts: dict[Part, tuple[np.ndarray, np.ndarray]] = {}
    left = _MOST
    for part, name in _NAMES.items():
        pictures = _values(_file(root, f"{name}-images-idx3-ubyte"), 3, left, found)
        left -= 0 if pictures is None else pictures.nbytes
        labels = _values(path := _file(root, f"{name}-labels-idx1-ubyte"), 1, left, found)
        left -= 0 if labels is None else labels.nbytes
        if pictures is not None and labels is not None:
            parts[part] = pictures, labels
            if len(pictures) != len(labels):
                found.wrong(path.name, f"{len(labels):,} labels for {len(pictures):,} pictures", "give files of one data set")
    sizes = {part: pictures.shape[1:] for part, (pictures, _) in parts.items()}
    if len(set(sizes.values())) > 1:
        told = " and ".join(f"{_times(size)} in {part}" for part, size in sizes.items())
        found.wrong(_file(root, f"{_NAMES['val']}-images-idx3-ubyte").name, f"pictures are {told}", "give both parts in one size")
    return parts


def as_served(pictures: np.ndarray, card: Card) -> Iterator[np.ndarray]:
    """uint8 [N, H, W] → what the card's model gets of each, [h, w, C]. Quick where the codec would change nothing."""
    wanted = ImageInput(**card.input)
    whole = (wanted.crop, wanted.crop)
    if wanted.color == "gray" and pictures.shape[1:] == whole and wanted.resize in (wanted.crop, whole):
        yield from pictures[..., None]
        return
    codec = ImageCodec(card, {}, {})
    for picture in pictures:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "BMP")
        yield codec.decode(out.getvalue()).samples[0].arrays["pixels"]


def _file(root: Path, name: str) -> Path:
    return plain if (plain := root / name).is_file() else root / f"{name}.gz"


def _values(path: Path, dimensions: int, most: int, found: Findings) -> np.ndarray | None:
    try:
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            shape = _shape(file, path, dimensions, found)
            if shape is None:
                return None
            size = math.prod(shape)
            if size > most:
                told = f"with its {_times(shape)} bytes the idx files hold more than {_MOST / 2**30:g} GiB, the limit"
                found.wrong(path.name, told, "give fewer pictures, or give them as files in class folders")
                return None
            values = file.read(size + 1)
    except FileNotFoundError:
        found.wrong(path.name, "is missing", "give all four files, named as their source names them")
    except (OSError, EOFError, zlib.error) as error:
        found.wrong(path.name, f"is no whole gzip file ({error})", _AGAIN)
    else:
        if len(values) == size:
            return np.frombuffer(values, np.uint8).reshape(shape)
        less = "fewer" if len(values) < size else "more"
        found.wrong(path.name, f"holds {less} than the {_times(shape)} bytes that its header says", _AGAIN)
    return None


def _shape(file: IO[bytes], path: Path, dimensions: int, found: Findings) -> tuple[int, ...] | None:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        found.wrong(path.name, "is no idx file", "pack the file as its source has it")
        return None
    if (head[2], head[3]) != (_BYTES, dimensions):
        told = f"has values of type {head[2]:#04x} in {head[3]} dimensions, not bytes (0x08) in {dimensions}"
        found.wrong(path.name, told, "give pictures and labels under their own names")
        return None
    sizes = file.read(4 * dimensions)
    shape = tuple(int.from_bytes(sizes[place : place + 4], "big") for place in range(0, 4 * dimensions, 4))
    if not 0 < math.prod(shape) <= max(1 << 20, _RATIO * path.stat().st_size):
        told = f"its header says {_times(shape)} bytes: none, or more than {_RATIO} times the file"
        found.wrong(path.name, told, _AGAIN)
        return None
    return shape


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
