"""Packing: every text stands in one row, whole, and the batch holds little else. Which architectures are packed at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.catalogue import Catalogue
from app.tasks.text.program import TextProgram, pack

CARD = Catalogue.read(Path("/nowhere")).named("all-minilm-l6-v2")


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80))
def test_every_text_stands_in_exactly_one_row_that_holds_it(lengths):
    rows, width = pack(lengths)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(rows), "no row is empty"
    assert all(sum(lengths[index] for index in row) <= width for row in rows)
    assert width <= max(*lengths, 160), "attention's waste grows with the row"


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80))
def test_packing_never_costs_more_than_padding(lengths):
    rows, width = pack(lengths)
    padded = len(lengths) * max(lengths)
    assert len(rows) * width <= padded * 1.2  # a shorter row may be chosen over a fuller one: attention is cheaper in it


def test_texts_of_one_length_are_a_plain_batch():
    assert pack([20] * 7) == ([[index] for index in range(7)], 20)


def test_mixed_lengths_fill_their_rows():
    lengths = [12] * 19 + [40] * 8 + [120] * 3 + [256] * 2
    rows, width = pack(lengths)
    assert sum(lengths) / (len(rows) * width) > 0.8, "padded to the longest it would be 0.18"


@pytest.mark.parametrize("kind", ["mpnet", "modernbert", "something-new", None])
def test_unknown_architectures_get_one_text_per_row(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    program = TextProgram(CARD, {"config.json": tmp_path / "config.json"})
    assert program.padded, "the batcher counts padding"
    batch = program.collate([{"input_ids": np.full(length, 7)} for length in (2, 4, 1)])
    assert batch["texts"].tolist() == [[0, 0, 3, 3], [1, 1, 1, 1], [2, 3, 3, 3]]
    assert batch["input_ids"].tolist() == [[7, 7, 0, 0], [7, 7, 7, 7], [7, 0, 0, 0]]
    assert (batch["pooling"] > 0).astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    ]
    assert batch["pooling"].sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "roberta", "xlm-roberta", "camembert"])
def test_absolute_positions_are_packed(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    program = TextProgram(CARD, {"config.json": tmp_path / "config.json"})
    assert not program.padded
    assert program.collate([{"input_ids": np.full(length, 7)} for length in (2, 4, 1, 1)])["texts"].shape[0] < 4
