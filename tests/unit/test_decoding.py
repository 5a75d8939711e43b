"""How many decoders there are."""

from __future__ import annotations

import pytest

from app.decoding.client import decoder_count


@pytest.mark.parametrize(
    ("cores", "frontends", "each"),
    [(1, 1, 2), (2, 1, 2), (8, 2, 4), (96, 24, 4), (16, 1, 16), (4, 8, 2)],
)
def test_the_frontends_together_have_a_decoder_per_core_and_each_at_least_two(cores: int, frontends: int, each: int):
    assert decoder_count(cores, frontends) == each
