"""Texts that a caller sent → token ids to learn from, and everything that is wrong with them. No torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.card import Card
from app.errors import HearthError, TooLarge
from app.tasks.base import Files
from app.tasks.findings import Findings, split, weigh
from app.tasks.table import role_of_test
from app.tasks.text.codec import TextCodec
from app.tasks.text.input import TextInput, most_tokens
from app.tasks.text.table import SCORED, Row, read

_TOKENS_PER_CHARACTER = 4  # at most, in vocabularies of bytes

Texts = tuple[str, ...]
Target = Callable[[Row], float]
"""What is to be learnt of a row: the number of its class, or its score in 0 … 1."""


@dataclass(slots=True)
class Found(Findings):
    """What a data set holds. A row's first `texts` values are texts."""

    texts: int = 1
    train: list[Row] = field(default_factory=list)
    val: list[Row] = field(default_factory=list)

    def key(self, row: Row) -> Texts:
        """What makes two rows the same."""
        return row.values[: self.texts]

    def parts(self) -> dict[str, list[Row]]:
        """By name."""
        return {"train": self.train, "val": self.val}


def check_labels(root: Path, card: Card, files: Files, into: Path, *, validation: float, seed: int) -> dict[str, Any]:
    """Columns `text` and `label`; the report tells the classes and how many texts of each there are."""
    found = Found()
    _, rows = read(root, "text-classification", found)
    for row in rows:
        if row.values[1].splitlines() != [row.values[1]]:
            found.wrong(row.where, "has a line break in its label", "rename the class")
    labels = sorted({row.values[1] for row in rows}, key=_natural)
    index = {label: number for number, label in enumerate(labels)}

    def target(row: Row) -> int:
        return index[row.values[1]]

    if rows and len(labels) < 2:
        found.wrong(".", f"all labels are {labels[0]!r}", "give texts of at least two classes")
    divide(found, rows, target, validation, seed)
    if not found.problems:
        weigh(Counter(map(target, found.train)), labels, "texts", found)
    if not found.problems:
        _compare(found)
        _write(found, target, card, files, into)
    counts = {part: Counter(row.values[1] for row in items) for part, items in found.parts().items()}
    return {"classes": labels, **{part: {label: of[label] for label in labels} for part, of in counts.items()}, **found.told()}


def check_pairs(root: Path, card: Card, files: Files, into: Path, *, validation: float, seed: int) -> dict[str, Any]:
    """Columns `sentence1`, `sentence2` and `score`, of any range; or `anchor`, `positive` and `negative`."""
    found = Found()
    layout, rows = read(root, "text-embedding", found)
    scored = layout == SCORED
    found.texts = 2 if scored else 3
    scores = {row.where: _score(row, found) for row in rows} if scored else {}
    divide(found, rows, lambda _: 0, validation, seed)
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=1.0)
    if scored and not found.problems and len({scores[row.where] for row in found.val}) < 2:
        found.wrong("val", "has not two different scores", "give more pairs, of more and of less alike texts")
    if not found.problems:
        _compare(found)
        _write(found, lambda row: (scores[row.where] - low) / (high - low) if scored else 0.0, card, files, into)
    kind: dict[str, Any] = {"kind": "pairs", "scores": [low, high]} if scored else {"kind": "triplets"}
    return {**kind, "train": len(found.train), "val": len(found.val), **found.told()}


def _natural(label: str) -> tuple[int, float, str]:
    """Numbers in their own order, before words."""
    return (0, float(label), label) if label.isascii() and label.isdigit() else (1, 0.0, label)


def _score(row: Row, found: Found) -> float:
    try:
        score = float(row.values[2])
    except ValueError:
        score = math.nan
    if math.isfinite(score):
        return score
    found.wrong(row.where, f"its score {row.values[2][:40]!r} is no number", "write one such as 3.5")
    return 0.0


def divide(found: Found, rows: Sequence[Row], target: Callable[[Row], int], validation: float, seed: int) -> None:
    """Into train and val: as the rows say themselves; else the same share of each class, equal texts on one side."""
    found.train = [row for row in rows if row.part in ("train", "")]
    tests = sum(row.part == "test" for row in rows)
    role = role_of_test({row.part for row in rows}, f"{tests} rows of test are", found)
    found.val = [row for row in rows if row.part == "val" or (row.part == "test" and role)]
    if rows and not found.train:
        found.wrong("train", "holds no rows", "give some to learn from")
    if found.val or found.problems:
        return
    first: dict[Texts, Row] = {}
    for row in found.train:
        first.setdefault(found.key(row), row)
    counts = Counter(target(row) for row in first.values())
    for row in first.values():
        if counts[target(row)] < 2:
            found.wrong(row.where, "is the only text of its class", "give at least two: one to learn from, one to check with")
    keys = list(first)
    held = {keys[place] for place in split([target(first[key]) for key in keys], validation, seed)[1]}
    found.val = [row for row in found.train if found.key(row) in held]
    found.train = [row for row in found.train if found.key(row) not in held]


def _compare(found: Found) -> None:
    """What makes learning or measuring doubtful without being wrong."""
    known = {found.key(row) for row in found.train}
    if across := sum(1 for row in found.val if found.key(row) in known):
        found.warnings.append(
            f"{across} of {len(found.val)} in val are also in train: what is measured is too kind by their share"
        )
    if found.texts > 1:
        return
    first: dict[Texts, Row] = {}
    rows = (*found.train, *found.val)
    torn = [(first[found.key(row)], row) for row in rows if first.setdefault(found.key(row), row).values[1] != row.values[1]]
    if torn:
        found.warnings.append(
            f"{len(torn)} rows say another label of the same text, such as {' and '.join(r.where for r in torn[0])}"
        )


def _write(found: Found, target: Target, card: Card, files: Files, into: Path) -> None:
    """Tokenise all once. `{train,val}.npz`: `ids` int32, all texts one after the other; `offsets` int64 [N * texts + 1], where
    they begin and end; `targets` float32 [N]. And `sample.json`.
    """
    config = json.loads(files["config.json"].read_text(encoding="utf-8"))
    codec = TextCodec(card, files, {"max_tokens": most_tokens(TextInput(**card.input), config)})
    cut: set[str] = set()
    for part, rows in found.parts().items():
        ids = [_ids(codec, text, row, found, cut) for row in rows for text in found.key(row)]
        np.savez(
            into / f"{part}.npz",
            ids=np.concatenate(ids).astype(np.int32),
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            targets=np.array([target(row) for row in rows], np.float32),
        )
    if cut:
        found.warnings.append(f"{len(cut)} texts have more than {codec.max_tokens} tokens, the model's limit: they are cut")
    texts = [row.values[0] for row in found.val]
    sample = next((text for text in texts if text not in cut), texts[0][: max(1, codec.max_tokens // _TOKENS_PER_CHARACTER)])
    (into / "sample.json").write_text(json.dumps({"inputs": sample}, ensure_ascii=False), encoding="utf-8")


def _ids(codec: TextCodec, text: str, row: Row, found: Found, cut: set[str]) -> np.ndarray:
    try:
        try:
            decoded = codec.decode(text)
        except TooLarge:
            cut.add(text)
            decoded = codec.decode(text, truncate=True)
    except HearthError as error:
        found.wrong(row.where, error.detail, "repair it, or take the line out")
        return np.zeros(0, np.int64)
    return decoded.samples[0].arrays["input_ids"]


def prepared(folder: Path) -> dict[str, Mapping[str, np.ndarray]]:
    """What a check wrote: part → `ids`, `offsets`, `targets`."""
    parts: dict[str, Mapping[str, np.ndarray]] = {}
    for part in ("train", "val"):
        with np.load(folder / f"{part}.npz", allow_pickle=False) as arrays:
            parts[part] = dict(arrays)
    return parts
