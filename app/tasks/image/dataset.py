"""Pictures with labels, for the trainer: the CIFAR archives, MNIST's idx files, or a folder of class folders.

Everything is decoded once into one uint8 tensor; augmentation works on whole batches.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from app.card import Card
from app.errors import BadInput
from app.tasks.base import Batch

Part = tuple[Tensor, Tensor]
"""pixels uint8 [N, C, H, W], labels int64 [N]."""


class ImageDataset:
    """Training and held-out pictures of one size, normalised as the card's `input` says."""

    def __init__(
        self,
        train: Part,
        held_out: Part,
        labels: Sequence[str],
        card: Card,
        *,
        augment: bool,
        sides: Sequence[int] = (),
        label_smoothing: float = 0.0,
    ) -> None:
        """`sides`: height and width of the pictures in epoch 1, 2, …; in the epochs after those, as they were read."""
        self.labels = labels
        self._sides = iter(sides)
        self._label_smoothing = label_smoothing
        self._train = train
        self._held_out = held_out
        self._augment = augment
        self._mean = torch.tensor(card.input["mean"]).view(1, -1, 1, 1)
        self._std = torch.tensor(card.input["std"]).view(1, -1, 1, 1)

    @classmethod
    def open(cls, path: Path, card: Card, *, sides: Sequence[int] = (), label_smoothing: float = 0.0) -> ImageDataset:
        """Read `path`: a folder with train.npz and test.npz (CIFAR layout), four idx files (MNIST), or train/ and val/ folders.

        Raises BadInput naming the file and what is wrong with it.
        """
        augmented = partial(cls, card=card, augment=True, sides=sides, label_smoothing=label_smoothing)
        if (path / "train.npz").exists():
            train, labels = _read_npz(path / "train.npz")
            return augmented(train, _read_npz(path / "test.npz")[0], labels)
        if (path / "train-images-idx3-ubyte.gz").exists():
            digits = [str(digit) for digit in range(10)]
            return cls(_read_idx(path, "train"), _read_idx(path, "t10k"), digits, card, augment=False)
        if (path / "train").is_dir():
            size = int(card.input["crop"])
            labels = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
            train, held_out = (_read_folders(path / part, labels, size) for part in ("train", "val"))
            return augmented(train, held_out, labels)
        raise BadInput(f"{path} holds no train.npz, no train-images-idx3-ubyte.gz and no folder train/; give one of these")

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch; the last, short one is left out."""
        return len(self._train[1]) // batch_size

    def batches(self, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Shuffled, augmented, normalised: `pixels` float32 [B, C, H, W] channels-last, `target` int64 [B]."""
        pixels, labels = self._train
        side = next(self._sides, pixels.shape[-1])
        order = torch.randperm(len(labels), generator=rng)
        for index in order[: self.steps(batch_size) * batch_size].view(-1, batch_size):
            batch = pixels[index].float() / 255
            if self._augment:
                batch = augment(batch, side, rng)
            yield {"pixels": self._normalise(batch), "target": labels[index]}

    def loss(self, module: torch.nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        logits = module(batch["pixels"]).float()
        return functional.cross_entropy(logits, batch["target"], label_smoothing=self._label_smoothing)

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        """Top-1 accuracy on the held-out pictures."""
        pixels, labels = self._held_out
        right = 0
        for start in range(0, len(labels), 500):
            logits = module(self._normalise(pixels[start : start + 500].float() / 255))
            right += int((logits.argmax(1) == labels[start : start + 500]).sum())
        return {"accuracy": right / len(labels)}

    def _normalise(self, pixels: Tensor) -> Tensor:
        return ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Flip, zoom, shift, stretch, turn, blur and recolour pictures [B, C, H, W] in 0 … 1, each its own way → [B, C, side, side]."""
    return _recolour(_warp(_blur(pixels, rng), side, rng), rng)


def _uniform(shape: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def _warp(pixels: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Most of the batch: flip and shift by whole pixels, which keeps it sharp. The rest: any affine map, mostly outwards."""
    count, channels, height, _ = pixels.shape
    free = torch.rand(count, generator=rng) < 0.35
    angle = _uniform(count, -0.15, 0.15, rng) * free
    zoom = torch.where(free, _uniform(count, 0.75, 1.25, rng), 1.0)
    stretch = torch.where(free, torch.exp(_uniform(count, -0.25, 0.25, rng)), 1.0)
    flip = torch.where(torch.rand(count, generator=rng) < 0.5, -1.0, 1.0)
    shift = torch.randint(-3, 4, (2, count), generator=rng) * (2 / height)
    sine, cosine = angle.sin(), angle.cos()
    rows = [
        torch.stack([flip * zoom * stretch * cosine, -zoom * sine, shift[0]], 1),
        torch.stack([flip * zoom * sine, zoom / stretch * cosine, shift[1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, channels, side, side], align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _blur(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """A quarter of the batch: Gaussian, sigma up to 1.1 pixels. Photographs squeezed to this size are softer than the set's."""
    chosen = torch.rand(len(pixels), generator=rng) < 0.25
    if not chosen.any():
        return pixels
    sigma = float(_uniform(1, 0.3, 1.1, rng))
    kernel = torch.exp(-(torch.arange(-2, 3) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(pixels.shape[1], 1, 1, 1)
    channels = pixels.shape[1]
    soft = functional.pad(pixels[chosen], (2, 2, 2, 2), mode="reflect")
    soft = functional.conv2d(functional.conv2d(soft, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)
    out = pixels.clone()
    out[chosen] = soft
    return out


def _recolour(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation within a fifth; one picture in twenty turns gray."""
    count = len(pixels)
    gray = pixels.mean(1, keepdim=True)
    saturation = _uniform(count, 0.8, 1.2, rng) * (torch.rand(count, generator=rng) > 1 / 20)
    pixels = gray + (pixels - gray) * saturation.view(-1, 1, 1, 1)
    middle = pixels.mean((1, 2, 3), keepdim=True)
    contrast, brightness = _uniform(count, 0.8, 1.2, rng), _uniform(count, -0.1, 0.1, rng)
    pixels = middle + (pixels - middle) * contrast.view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)
    return pixels.clamp(0, 1)


def _read_npz(path: Path) -> tuple[Part, list[str]]:
    with np.load(path, allow_pickle=False) as archive:
        data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
        classes = [str(name) for name in archive["classes"]]
    files = (data[start:end].tobytes() for start, end in zip(offsets, offsets[1:], strict=False))
    pixels = np.stack([np.asarray(_open(raw, f"{path.name}, picture {i}")) for i, raw in enumerate(files)])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))), classes


def _open(raw: bytes, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(raw)).convert("RGB")
    except (OSError, ValueError) as error:
        raise BadInput(f"{where} cannot be read as a picture ({error}); replace or remove it") from error


def _read_idx(folder: Path, part: str) -> Part:
    """Y. LeCun's idx format: big-endian magic, sizes, then bytes."""
    images = _idx_bytes(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = _idx_bytes(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    return torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _idx_bytes(path: Path, dimensions: int) -> np.ndarray:
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", count=dimensions, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise BadInput(f"{path.name} is not a gzipped idx file ({error}); download it again") from error


def _read_folders(folder: Path, labels: Sequence[str], size: int) -> Part:
    """Class folders of pictures, each squeezed so that its shorter side is `size` and cropped in the middle."""
    pixels, targets = [], []
    for target, label in enumerate(labels):
        for path in sorted((folder / label).iterdir()):
            picture = _open(path.read_bytes(), f"{folder.name}/{label}/{path.name}")
            scale = size / min(picture.size)
            width, height = (math.ceil(side * scale) for side in picture.size)
            left, top = (width - size) // 2, (height - size) // 2
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels.append(np.asarray(resized.crop((left, top, left + size, top + size))))
            targets.append(target)
    if not pixels:
        raise BadInput(f"{folder} holds no pictures; put them into one folder per class")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)
