"""What callers leave unsaid is filled in, and what cannot be is told."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Invalid
from app.tuning.spec import _DEFAULTS, Spec, filled, understood


def spec(**values: Any) -> Spec:
    return Spec(name="new", base="old", **values)


def test_what_is_given_stands_above_what_gives_a_good_result():
    one = filled(spec(epochs=7), "text-classification")
    assert (one.task, one.epochs, one.optimizer, one.per_epoch) == ("text-classification", 7, "adamw", 12_288)
    assert filled(one, "text-classification") == one


def test_pictures_are_smaller_at_first_where_weights_know_pictures_and_the_job_sees_its_last_epochs():
    assert filled(spec(), "image-classification").small_first
    assert not filled(spec(start="fresh"), "image-classification").small_first
    assert not filled(spec(patience=2, epochs=30), "image-classification").small_first
    assert filled(spec(start="fresh", small_first=True), "image-classification").small_first


def test_where_the_data_decides_nothing_is_filled_in_yet():
    assert understood(spec(), "text-embedding") == spec()
    assert understood(spec(task="text-classification"), "text-embedding").learning_rate == 1e-4
    assert understood(spec(label_smoothing=0.1), "text-embedding").label_smoothing == 0.1
    assert understood(spec(), "image-classification").task == "image-classification"


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        ({"task": "image-classification"}, "text-embedding", "can be tuned to one of: text-embedding, text-classification"),
        ({"method": "head", "start": "fresh"}, "image-classification", "fresh weights all have to learn"),
        ({"method": "head", "task": "text-embedding"}, "text-embedding", "are tuned by one of: full, lora"),
        (
            {"label_smoothing": 0.1},
            "speech-recognition",
            "spec: label_smoothing: has no use for speech-recognition: .* no classes",
        ),
        ({"label_smoothing": 0.1, "task": "text-embedding"}, "text-embedding", "label_smoothing: has no use for text-embedding"),
        ({"augment": True}, "text-embedding", "augment: has no use for text-embedding: texts are not changed at random"),
        ({"keep_statistics": True}, "speech-recognition", "keep_statistics: .* no batch norms; leave it out"),
        ({"per_epoch": 9}, "image-classification", "per_epoch: .* all of them make an epoch"),
        ({"rank": 8}, "speech-recognition", "rank: is that of lora's matrices, and full has none"),
        ({"method": "head", "augment": True}, "image-classification", "augment: for method head"),
        ({"method": "head", "small_first": True}, "image-classification", "small_first: for method head"),
        ({"small_first": True, "patience": 2}, "image-classification", "patience may end the job before"),
        ({"small_first": True}, "speech-recognition", "small_first: .* only pictures come in sizes"),
    ],
)
def test_what_cannot_be_is_told(values: dict[str, Any], task: str, words: str):
    with pytest.raises(Invalid, match=words):
        understood(spec(**values), task)


@pytest.mark.parametrize("task", ["image-classification", "speech-recognition", "text-classification", "text-embedding"])
@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_what_was_filled_in_and_what_asks_for_nothing_is_not_refused(task: str, method: Any):
    if method not in _DEFAULTS[task]:
        return
    one = filled(spec(method=method, augment=False, label_smoothing=0.0, keep_statistics=False), task)
    assert filled(one, task) == one
