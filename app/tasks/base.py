"""The contracts between a task and the rest: what a codec, a program and a dataset offer. No torch at run time.

A task is three classes: a `Codec` (bytes ⇄ arrays; frontends, no torch), a `Program` (arrays ⇄ module; workers) and a
dataset (files → samples with targets; tuners). `app/tasks/__init__.py` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from msgspec import Struct, field

from app.errors import ModelFailed

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]
Output = Arrays
"""The arrays one sample got back, by name: `scores [C]`, `embedding [D]`, `token_ids [T]` …"""

Files = Mapping[str, Path]
"""A model's local files by short name: `model.safetensors`, `tokenizer.json`, `config.json`, `labels.txt` …"""

Batch = dict[str, Any]
"""The arrays of several samples as what computes takes them: torch.Tensor, or np.ndarray where no torch is needed."""

Networks = Mapping[str, Callable[..., Any]]
"""A program's functions by name, from a batch's arrays to others of their kind: modules, or what a compiler made of them."""


class Sample(Struct, frozen=True, kw_only=True):
    """One decoded input: small arrays, and what it costs in its task's unit (`Limits` of the card)."""

    arrays: Arrays
    cost: float


class Decoded(Struct, frozen=True, kw_only=True):
    """One input of a caller: one sample, or several where the codec cut it (long audio), and what interpret needs to know."""

    samples: tuple[Sample, ...]
    info: dict[str, Any] = field(default_factory=dict)


class Recipe(Struct, frozen=True):
    """All that decoding a file takes, so that another process can do it: `app/decoding`."""

    task: str
    input: str
    """The card's `input`, as JSON."""
    limit: float
    """Of pixels, or of seconds."""


class Reader(Protocol):
    """The part of a codec that touches the bytes of strangers with native code. Built as `Reader(input, limit)`."""

    seconds_each: float
    """Of the processor, which reading may take for each pixel, or second of sound, that the limit allows: four times what the
    dearest of good files took.
    """

    @staticmethod
    def prepare() -> None:
        """Import all that `decode` may need: where it runs, files are out of reach."""
        ...

    def decode(self, item: Any) -> Decoded:
        """As the codec's. `info` holds plain values alone. Raises MemoryError where there is not enough."""
        ...


def device_of(module: torch.nn.Module) -> torch.device | str:
    """Where a module's weights lie, and so where what it is given has to go."""
    return next((weight.device for weight in module.parameters()), "cpu")


def one_each(name: str, array: np.ndarray, count: int) -> np.ndarray:
    """The output `name`, if it has a vector for each of `count` inputs. Raises ModelFailed."""
    if array.ndim != 2 or len(array) != count:
        raise ModelFailed(f"the model gave {name!r} in the shape {list(array.shape)}, not a vector for each of {count} inputs")
    return array


class Vectors:
    """One for each input, as wide as in the first batch, which is the card's sample: what else a network gives is no answer."""

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}

    def of(self, name: str, array: np.ndarray, count: int) -> np.ndarray:
        """As `one_each`."""
        width = self._widths.setdefault(name, one_each(name, array, count).shape[1])
        if array.shape[1] != width:
            raise ModelFailed(f"the model gave {name!r} with {array.shape[1]} numbers, not {width} as before")
        return array


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1; zeros stay zeros."""
    scaled: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled


class Codec(Protocol):
    """bytes ⇄ arrays, in the frontend. Built as `Codec(card, files, meta)`; thread-safe; raises `errors.HearthError` alone.

    `files` are the model's local files; `meta` is what the worker's program told of the loaded module (`Program.describe`).
    """

    recipe: Recipe | None
    """For its reader; None: what decodes is safe with any bytes, and runs in the frontend (in a thread, unless it is light)."""

    def light(self, item: Any) -> bool:
        """Whether decoding, whatever the bytes are, holds the event loop for so short that no other thread is worth it: usually
        for a few tenths of a millisecond. To hand it over and back costs 0.3 ms where others want the cores.
        """
        ...

    def decode(self, item: Any) -> Decoded:
        """Turn one input (raw bytes, or a string for text) into samples. Raises the caller's errors."""
        ...

    def interpret(self, decoded: Decoded, outputs: Sequence[Output], **options: Any) -> dict[str, Any]:
        """Turn the outputs of `decoded.samples`, in order, into the plain values that the endpoint answers."""
        ...


class Program(Protocol):
    """arrays ⇄ module, in the worker. Built as `Program(card, files)`. Never moves devices or dtypes: `engine/runner.py` does.

    Its module imports no torch: a worker that begins with compiled networks has none, which is 500 MB less. Whatever needs torch
    stands in the task's `network.py`; what `forward` does itself it does by what tensors and arrays have in common.
    """

    padded: bool
    """A batch costs its length times its dearest sample, because the others are padded; else what its samples cost together."""

    def networks(self, module: torch.nn.Module) -> Mapping[str, torch.nn.Module]:
        """What there is to compute, as modules that take and give tensors alone, so that a compiler can take each whole.

        They share the weights of `module` and follow its dtype; first dimensions and lengths may differ from call to call.
        Rows of the first dimension do not see each other. A network whose second dimension may be padded, too, says with which
        number for each argument: `paddings` (`engine/graphs.py`).
        """
        ...

    def collate(self, samples: Sequence[Arrays]) -> Arrays:
        """Join samples into one batch."""
        ...

    def forward(self, networks: Networks, batch: Batch) -> Batch:
        """Run the networks."""
        ...

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """Give each sample its own output, padding removed. Each output must not depend on the sample's neighbours."""
        ...

    def describe(self, module: torch.nn.Module) -> dict[str, Any]:
        """What codecs and callers need to know of the module: `labels`, `dimensions`, `max_tokens` … JSON values only."""
        ...


class Dataset(Protocol):
    """files → samples with targets, for the trainer. Built by the task's `open(path, card, seed)`; holds its own split."""

    labels: Sequence[str]

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch."""
        ...

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """One epoch (counted from 0) of the training part: shuffled and augmented, all randomness from `rng`.

        A batch's tensors lie on the CPU; the trainer moves them. The last of them has a row for each sample: that is how many
        there are, and what the batch counts for where several make a step.
        """
        ...

    def prepare(self, module: torch.nn.Module) -> None:
        """What a network with fresh weights should know before its first step."""
        ...

    def loss(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scalar training loss of one batch."""
        ...

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        """Metrics on the part kept out of training; the first one is the headline. Shares lie in 0 … 1. `module` may be on a GPU
        (`device_of`).
        """
        ...
