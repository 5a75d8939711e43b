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
# Of 579 answers (the same networks, 193 photographs, most of them of things that ImageNet has no class for) bf16 changed 25: it
# held the two best classes within 0.028 of each other. On labelled photographs 2 to 7 % are as close as 0.04. Keeping the last
# layer in fp32 changed as many.
_CLOSE = 0.04
_BELIEVED = 0.1  # below that nobody takes the best class for an answer; a network that was never trained has nothing else
_UNDECIDED = 0.5  # a frame whose best token has less than half of the probability is decided by rounding
_COSINE = 0.999


def agree(expected: Sequence[Output], got: Sequence[Output | HearthError], *, decided: bool = False) -> str:
    """Empty if the outputs mean the same (best class, its probability, an embedding's direction, tokens); else what differs.
    `decided`: what was close is, so a best class that may be taken for the answer must be the same.
    """
    for want, have in zip(expected, got, strict=True):
        if isinstance(have, HearthError):
            return have.detail
        if "scores" in want:
            moved = float(np.abs(want["scores"] - have["scores"]).max())
            best = float(want["scores"].max())
            tie = 0.0 if decided and best >= _BELIEVED else _TIE
            if not moved <= _SCORES or want["scores"][np.argmax(have["scores"])] < best - tie:
                return f"scores differ by {moved:.3f}"
        if "embedding" in want:
            lengths = np.linalg.norm(want["embedding"]) * np.linalg.norm(have["embedding"])
            cosine = float(want["embedding"] @ have["embedding"] / max(float(lengths), 1e-12))
            if not cosine >= _COSINE:
                return f"cosine {cosine:.5f}"
        if "token_ids" in want and spoken(want["token_ids"]) != spoken(have["token_ids"]):
            sure = want["token_scores"] >= _UNDECIDED
            if (want["token_ids"] != have["token_ids"])[sure].any():
                return "another transcript"
    return ""


def close(output: Output) -> bool:
    """The two best classes are so close that bf16 may have changed their order, and one of them may be taken for the answer."""
    if "scores" not in output or output["scores"].size < 2:
        return False
    second, first = np.partition(output["scores"], -2)[-2:]
    return bool(first - second < _CLOSE and first >= _BELIEVED)


def classifies(outputs: Sequence[Output | HearthError]) -> bool:
    """Whether such outputs may be close."""
    return any("scores" in output for output in outputs if not isinstance(output, HearthError))


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


def spoken(ids: np.ndarray) -> list[int]:
    """CTC's collapse: repeats count once."""
    return [int(id) for id, before in zip(ids, [-1, *ids[:-1]], strict=True) if id != before]
