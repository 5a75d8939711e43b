"""What a data set is for, where its owner did not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.card import Card
from app.tuning.data import examine
from app.tuning.spec import Spec

PAIRS = "for text-embedding, name them sentence1, sentence2, score, or anchor, positive, negative"
LABELS = "for text-classification, name them text, label"


@pytest.mark.parametrize(
    ("base", "values", "remedy"),
    [
        ("text-embedding", {}, f"{PAIRS}; {LABELS}"),
        ("text-embedding", {"method": "head"}, LABELS),
        ("text-embedding", {"task": "text-classification"}, LABELS),
        ("text-classification", {}, LABELS),
    ],
)
def test_columns_of_no_task_are_told_with_those_of_all_that_the_model_can_become(
    tmp_path: Path, base: str, values: dict[str, Any], remedy: str
):
    (tmp_path / "dataset").write_text("review,sentiment\nso dull,bad\n")
    card = Card(name="old", folder=tmp_path, task=base, source={"kind": "file"}, about={"licence": "x"})
    report = examine(tmp_path, Spec(name="new", base="old", **values), card, {}, [], tmp_path)
    assert report["problems"] == [{"where": "dataset:1", "what": "its columns are: review, sentiment", "remedy": remedy}]
