"""Texts become tokens within the limit; vectors become answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from app.card import Card
from app.errors import HearthError, Invalid, ModelFailed, TooLarge
from app.tasks.base import Decoded
from app.tasks.text.codec import TextClassifierCodec, TextCodec


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def card(task: str) -> Card:
    return Card(name="m", folder=Path("/x"), task=task, source={"kind": "file"}, input={"max_tokens": 8}, about={"licence": "x"})


@pytest.fixture
def codec(tokenizer: Path) -> TextCodec:
    return TextCodec(card("text-embedding"), {"tokenizer.json": tokenizer}, {"max_tokens": 512, "dimensions": 3})


def test_a_text_is_its_tokens_and_costs_as_many(codec: TextCodec):
    decoded = codec.decode("a b a b a b")
    assert decoded.samples[0].arrays["input_ids"].tolist() == [1, 3, 4, 3, 4, 3, 4, 2], (
        "the file's own cutting and padding are off"
    )
    assert decoded.samples[0].cost == 8
    assert decoded.info["tokens"] == 8


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", Invalid, "empty"),
        (" \n", Invalid, "white space"),
        ("a\ud800", Invalid, "character 1"),
        ("a " * 7, TooLarge, "9 tokens; the limit is 8"),
        ("a " * 500_000, TooLarge, "1,000,000 characters; the limit is 8 tokens"),
    ],
)
def test_what_does_not_fit_is_told(codec: TextCodec, text: str, error: type[HearthError], words: str):
    with pytest.raises(error) as told:
        codec.decode(text)
    assert words in told.value.detail


@pytest.mark.parametrize(
    ("text", "light"),
    [
        ("", True),
        ("a word " * 280, True),
        ("a word " * 290, False),
        ("字" * 499, True),
        ("字" * 500, False),
        ("w" * 41 + " a word" * 50, True),
        ("w" * 41 + " a word" * 70, False),
    ],
)
def test_what_takes_long_does_not_hold_the_event_loop(codec: TextCodec, text: str, light: bool):
    assert codec.light(text) is light


def test_truncate_keeps_the_first_tokens(codec: TextCodec):
    for text in ("a b " * 20, "a b " * 500_000):
        assert codec.decode(text, truncate=True).samples[0].arrays["input_ids"].tolist() == [1, 3, 4, 3, 4, 3, 4, 2]


@pytest.mark.parametrize(
    ("options", "vector"),
    [
        ({}, [0.6, 0.8, 0.0]),
        ({"normalize": False}, [3.0, 4.0, 0.0]),
        ({"dimensions": 1}, [1.0]),
        ({"dimensions": 2, "normalize": False}, [3.0, 4.0]),
    ],
)
def test_vectors_are_cut_then_scaled(codec: TextCodec, options: dict[str, Any], vector: list[float]):
    output = {"embedding": np.array([3.0, 4.0, 0.0], np.float32)}
    np.testing.assert_allclose(codec.interpret(Decoded(samples=()), [output], **options)["embedding"], vector, rtol=1e-6)


def test_more_dimensions_than_there_are_are_refused_before_anything_is_computed(codec: TextCodec):
    assert codec.decode("a", dimensions=3).samples
    with pytest.raises(Invalid, match="dimensions is 4; this model has 3"):
        codec.decode("a", dimensions=4)


def test_more_dimensions_than_there_are_is_told(codec: TextCodec):
    with pytest.raises(Invalid, match="dimensions is 4; this model has 3"):
        codec.interpret(Decoded(samples=()), [{"embedding": np.zeros(3, np.float32)}], dimensions=4)


def test_scores_become_labels_best_first(tokenizer: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("bad\nfair\ngood\n")
    files = {"tokenizer.json": tokenizer, "labels.txt": tmp_path / "labels.txt"}
    codec = TextClassifierCodec(card("text-classification"), files, {})
    assert codec.decode("a b").samples[0].arrays["input_ids"].tolist() == [1, 3, 4, 2], "read as for embeddings"
    output = {"scores": np.array([0.25, 0.125, 0.625], np.float32)}
    best = [{"label": "good", "index": 2, "score": 0.625}, {"label": "bad", "index": 0, "score": 0.25}]
    assert codec.interpret(Decoded(samples=()), [output], top_k=2) == {"predictions": best}
    with pytest.raises(ModelFailed, match=r"2 scores for 3 labels; mend its labels.txt"):
        codec.interpret(Decoded(samples=()), [{"scores": np.zeros(2, np.float32)}])
