"""A recipe and a file as a letter to a decoder, and what it made of them as its answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from app.tasks.base import Arrays, Decoded, Recipe, Sample
from app.wire.frames import FrameError, Letter
from app.wire.messages import Decode, Message, Samples


def order(recipe: Recipe, item: bytes) -> Letter:
    """Decode `item` so."""
    return Decode(recipe.task, recipe.input, recipe.limit), {"item": np.frombuffer(item, np.uint8)}


def ordered(message: Message, arrays: Mapping[str, np.ndarray]) -> tuple[Recipe, bytes]:
    """What `order` said. Raises FrameError where it is something else."""
    if not isinstance(message, Decode):
        raise FrameError(f"a decoder is told {message}")
    return Recipe(message.task, message.input, message.limit), arrays["item"].tobytes()


def answer(decoded: Decoded) -> Letter:
    """What came of it."""
    arrays = {f"{n} {name}": array for n, sample in enumerate(decoded.samples) for name, array in sample.arrays.items()}
    return Samples(tuple(sample.cost for sample in decoded.samples), decoded.info), arrays


def answered(message: Samples, arrays: Mapping[str, np.ndarray]) -> Decoded:
    """What `answer` said."""
    parts: list[Arrays] = [{} for _ in message.costs]
    for key, array in arrays.items():
        number, _, name = key.partition(" ")
        parts[int(number)][name] = array
    samples = tuple(Sample(arrays=part, cost=cost) for part, cost in zip(parts, message.costs, strict=True))
    return Decoded(samples=samples, info=message.info)
