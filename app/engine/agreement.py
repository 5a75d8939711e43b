"""Do two computations of a model mean the same? What is compared, and how far they may differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.errors import HearthError
from app.tasks.base import Arrays, Output

# bf16 against fp32 on 43 labelled photographs: ResNet-18, ResNet-50 and MobileNetV2 move a probability by up to 0.06, and change
# the best class of four pictures altogether, where fp32 holds the two within 0.03 of each other.
_SCORES = 0.06
_TIE = 0.03
_UNDECIDED = 0.5  # a frame whose best token has less than half of the probability is decided by rounding
_COSINE = 0.999


def agree(expected: Sequence[Output], got: Sequence[Output | HearthError]) -> str:
    """Empty if the outputs mean the same (best class, its probability, an embedding's direction, tokens); else what differs."""
    for want, have in zip(expected, got, strict=True):
        if isinstance(have, HearthError):
            return have.detail
        if "scores" in want:
            moved = float(np.abs(want["scores"] - have["scores"]).max())
            if not moved <= _SCORES or want["scores"][np.argmax(have["scores"])] < want["scores"].max() - _TIE:
                return f"scores differ by {moved:.3f}"
        if "embedding" in want:
            lengths = np.linalg.norm(want["embedding"]) * np.linalg.norm(have["embedding"])
            cosine = float(want["embedding"] @ have["embedding"] / max(float(lengths), 1e-12))
            if not cosine >= _COSINE:
                return f"cosine {cosine:.5f}"
        if "token_ids" in want and _spoken(want["token_ids"]) != _spoken(have["token_ids"]):
            decided = want["token_scores"] >= _UNDECIDED
            if (want["token_ids"] != have["token_ids"])[decided].any():
                return "another transcript"
    return ""


def probes(samples: Sequence[Arrays]) -> list[Arrays]:
    """The card's samples, and what is like them: other lengths, other pictures."""
    found = list(samples)
    for sample in samples:
        for name, array in sample.items():
            if array.ndim == 1 and len(array) >= 8:
                found.append(sample | {name: array[: len(array) * 2 // 3].copy()})
            elif array.ndim == 3:
                found += [
                    sample | {name: np.ascontiguousarray(array[::-1])},
                    sample | {name: (array // 2 + 40).astype(array.dtype)},
                ]
    return found


def _spoken(ids: np.ndarray) -> list[int]:
    """CTC's collapse: repeats count once."""
    return [int(id) for id, before in zip(ids, [-1, *ids[:-1]], strict=True) if id != before]
