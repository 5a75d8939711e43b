"""Pictures with labels, for the trainer: the CIFAR archives, MNIST's idx files, or a folder of class folders.

Everything is decoded once, by the codec that serves, into one uint8 tensor; augmentation works on whole batches.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.card import Card
from app.errors import BadInput, HearthError
from app.tasks.base import Batch, device_of
from app.tasks.findings import Findings
from app.tasks.image import idx
from app.tasks.image.codec import ImageCodec
from app.tasks.image.input import ImageInput
from app.tasks.measures import beside

_SCORED = 64  # pictures at once

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
        largest_first: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        """`sides`: height and width of the pictures in epoch 1, 2, …; in the epochs after those, as they were read.
        `largest_first`: so they are in that many of the first batches, too: what has no memory for them fails at once.
        """
        wanted = ImageInput(**card.input)
        self.labels = labels
        self._train = train
        self._held_out = held_out
        self._augment = augment
        self._sides = sides
        self._largest_first = largest_first
        self._label_smoothing = label_smoothing
        self._mean = torch.tensor(wanted.mean).view(1, -1, 1, 1)
        self._std = torch.tensor(wanted.std).view(1, -1, 1, 1)

    @classmethod
    def open(cls, path: Path, card: Card, *, sides: Sequence[int] = (), label_smoothing: float = 0.0) -> ImageDataset:
        """Read `path`: a folder with train.npz and test.npz (CIFAR layout), four idx files (MNIST), or train/ and val/ folders.

        Raises BadInput naming the file and what is wrong with it.
        """
        dataset = partial(cls, card=card, sides=sides, label_smoothing=label_smoothing)
        if (path / "train.npz").exists():
            train, labels = _read_npz(path / "train.npz", card)
            return dataset(train, _read_npz(path / "test.npz", card)[0], labels, augment=True)
        if idx.is_idx(path):
            return dataset(*_read_idx(path), [str(digit) for digit in range(10)], augment=False)
        if (path / "train").is_dir():
            labels = sorted(folder.name for folder in (path / "train").iterdir() if folder.is_dir())
            train, held_out = (_read_folders(path / part, labels, card) for part in ("train", "val"))
            return dataset(train, held_out, labels, augment=True)
        raise BadInput(f"{path} holds no train.npz, no train-images-idx3-ubyte.gz and no folder train/; give one of these")

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch; the last, short one is left out."""
        return len(self._train[1]) // batch_size

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """Shuffled, augmented, normalised: `pixels` float32 [B, C, H, W] channels-last, `target` int64 [B]."""
        pixels, labels = self._train
        order = torch.randperm(len(labels), generator=rng)
        for number, index in enumerate(order[: self.steps(batch_size) * batch_size].view(-1, batch_size)):
            batch = pixels[index].float() / 255
            first = epoch == 0 and number < self._largest_first
            side = pixels.shape[-1] if first else self._side(epoch)
            if self._augment:
                batch = augment(batch, side, rng)
            elif side != pixels.shape[-1]:
                batch = functional.interpolate(batch, side, mode="bilinear", antialias=True)
            yield {"pixels": self._normalise(batch), "target": labels[index]}

    def _side(self, epoch: int) -> int:
        return self._sides[epoch] if epoch < len(self._sides) else int(self._train[0].shape[-1])

    def work(self, epoch: int) -> float:
        """What a batch of that epoch costs, as a share of what one of full size does."""
        return float((self._side(epoch) / self._train[0].shape[-1]) ** 2)

    def prepare(self, module: torch.nn.Module) -> None:
        """A network with a `prepare` of its own sees normalised training pictures; others start from random weights."""
        if callable(own := getattr(module, "prepare", None)):
            own(self._normalise(self._train[0][:5000].float() / 255))

    def loss(self, module: torch.nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        said = module(batch["pixels"])
        logits = (said if isinstance(said, Tensor) else said[0]).float()  # Inception and GoogLeNet add auxiliary heads
        return functional.cross_entropy(logits, batch["target"], label_smoothing=self._label_smoothing)

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        """Top-1 accuracy on the held-out pictures, and what `measures.beside` adds."""
        pixels, labels = self._held_out
        device, parts = device_of(module), torch.split(pixels, _SCORED)
        logits = torch.cat([module(self._normalise(part.float() / 255).to(device)).cpu() for part in parts])
        return {"accuracy": int((logits.argmax(1) == labels).sum()) / len(labels), **beside(logits, labels)}

    def _normalise(self, pixels: Tensor) -> Tensor:
        return ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Blur, flip, zoom, shift, stretch, turn and recolour pictures [B, C, H, W] in 0 … 1, each its own way, to this side."""
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
    most = round(3 * max(1.0, height / 32))  # a tenth of the side
    shift = torch.randint(-most, most + 1, (2, count), generator=rng) * (2 / height)
    sine, cosine = angle.sin(), angle.cos()
    rows = [
        torch.stack([flip * zoom * stretch * cosine, -zoom * sine, shift[0]], 1),
        torch.stack([flip * zoom * sine, zoom / stretch * cosine, shift[1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, channels, side, side], align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _blur(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """A quarter of the batch: Gaussian, sigma up to 1.1 pixels. Photographs squeezed to 32 pixels are softer than that set's."""
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


def _read_npz(path: Path, card: Card) -> tuple[Part, list[str]]:
    """One archive: `jpeg` (all files one after another), `offsets` [N + 1], `labels` [N], `classes`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
            classes = [str(name) for name in archive["classes"]]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no archive of jpeg, offsets, labels and classes ({error}); download it again") from error
    files = (data[start:end].tobytes() for start, end in pairwise(offsets))
    return _decode(((f"{path}, picture {i}", raw) for i, raw in enumerate(files)), labels.tolist(), card), classes


def _read_folders(folder: Path, labels: Sequence[str], card: Card) -> Part:
    """A folder of class folders."""
    paths = [(path, target) for target, label in enumerate(labels) for path in sorted((folder / label).glob("[!.]*"))]
    if not paths:
        raise BadInput(f"{folder} holds no pictures; put them into one folder per class")
    return _decode(((str(path), path.read_bytes()) for path, _ in paths), [target for _, target in paths], card)


def _decode(pictures: Iterable[tuple[str, bytes]], targets: Sequence[int], card: Card) -> Part:
    """Name and bytes of each picture → pixels, prepared exactly as in service."""
    codec = ImageCodec(card, {}, {})
    pixels = []
    for name, raw in pictures:
        try:
            pixels.append(codec.decode(raw).samples[0].arrays["pixels"])
        except HearthError as error:
            raise BadInput(f"{name}: {error.detail}, or take it out of the training data") from error
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)


def _read_idx(folder: Path) -> tuple[Part, Part]:
    found = Findings()
    parts = idx.read(folder, found)
    for problem in found.problems[:1]:
        raise BadInput(f"{folder / problem.where}: {problem.what}; {problem.remedy}")
    train, held_out = (
        (torch.from_numpy(pictures.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))
        for pictures, labels in (parts["train"], parts["val"])
    )
    return train, held_out
