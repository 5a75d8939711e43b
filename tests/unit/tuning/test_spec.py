"""What callers leave unsaid is filled in, and what cannot be is told."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Invalid
from app.tuning.spec import Spec, filled, understood


def spec(**values: Any) -> Spec:
    return Spec(name="new", base="old", **values)


def test_what_is_given_stands_above_what_gives_a_good_result():
    one = filled(spec(epochs=7), "text-classification")
    assert (one.task, one.epochs, one.optimizer, one.per_epoch) == ("text-classification", 7, "adamw", 16_384)
    assert filled(one, "text-classification") == one


def test_where_the_data_decides_nothing_is_filled_in_yet():
    assert understood(spec(), "text-embedding") == spec()
    assert understood(spec(task="text-classification"), "text-embedding").learning_rate == 1e-4
    assert understood(spec(), "image-classification").task == "image-classification"


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        ({"task": "image-classification"}, "text-embedding", "can be tuned to one of: text-embedding, text-classification"),
        ({"method": "lora"}, "image-classification", "are tuned by one of: full, head"),
        ({"method": "head", "start": "fresh"}, "image-classification", "fresh weights all have to learn"),
        ({"method": "head", "task": "text-embedding"}, "text-embedding", "are tuned by one of: full, lora"),
    ],
)
def test_what_cannot_be_is_told(values: dict[str, Any], task: str, words: str):
    with pytest.raises(Invalid, match=words):
        understood(spec(**values), task)
