"""Packing: every text stands in one row, whole, and the batch holds little else."""

from __future__ import annotations

from hypothesis import given, strategies as st

from app.tasks.text.program import pack


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
