"""Graphs of paper: padding, cutting, remembering, and what is done when a graph cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.engine.compute import Compute
from app.engine.graphs import _MOST, Graphs, measured, padded_length, padded_rows


class Paper:
    """ "Captures" by calling again, into the tensors of the first call, as a replay would."""

    def __init__(self, *, slower: bool = False, able: bool = True) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.replays = 0
        self._slower = slower
        self._able = able

    def capture(self, network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Any, Callable[[], None]]:
        self.captured.append(tuple(inputs[0].shape))
        if not self._able:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = network(*inputs)

        def replay() -> None:
            self.replays += 1
            fresh = network(*inputs)
            pairs = zip(outputs, fresh, strict=True) if isinstance(outputs, tuple) else [(outputs, fresh)]
            for into, value in pairs:
                into.copy_(value)

        return outputs, replay

    def seconds(self, call: Callable[[], Any]) -> float:
        before = self.replays
        call()
        return 2.0 if self.replays == before else 3.0 if self._slower else 1.0


class Pair(nn.Module):
    """Two answers a row; notes how often Python comes by, which a replay does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(x.shape))
        return 2 * x, x.sum(1)


class Kin(nn.Module):
    """Each token becomes the sum of its text's tokens: sees at once whether padding joined a text."""

    paddings = (0, -1)

    def forward(self, values: Tensor, texts: Tensor) -> Tensor:
        together = (texts[:, :, None] == texts[:, None, :]).float()
        return (together @ values[:, :, None]).expand(-1, -1, 3)


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 20), (20, 20), (33, 33)])
def test_rows_go_up_to_few_sizes_but_not_beyond_the_largest_batch(rows: int, padded: int):
    assert padded_rows(rows, 20) == padded


def test_lengths_go_up_to_few_sizes():
    assert [padded_length(length) for length in (1, 16, 17, 128, 129, 256, 257)] == [16, 16, 32, 128, 160, 256, 288]


def test_answers_are_the_plain_calls_whatever_was_there_before():
    graphs, random = Graphs(Pair(), 8, paper := Paper()), torch.Generator().manual_seed(0)
    for rows in (3, 3, 4, 3, 1, 1, 2, 2, 3, 4):
        x = torch.randn(rows, 5, generator=random)
        double, total = graphs(x)
        assert torch.equal(double, 2 * x) and torch.equal(total, x.sum(1))
    assert paper.captured == [(4, 5), (1, 5), (2, 5)]
    assert paper.replays == 3 * 2 + 7, "two to try each bucket, and one for each call but its first"


def test_an_answer_outlives_the_next_call():
    graphs = Graphs(Pair(), 8, Paper())
    for _ in range(2):
        graphs(torch.ones(1, 2))
    first, _ = graphs(torch.ones(1, 2))
    graphs(torch.zeros(1, 2))
    assert torch.equal(first, torch.full((1, 2), 2.0))


def test_padding_joins_no_text_though_the_place_held_one_before():
    graphs = Graphs(kin := Kin(), 8, paper := Paper())
    for length in (16, 16, 5, 12, 3):
        values = torch.arange(2.0 * length).view(2, length)
        texts = torch.tensor([[0] * (length - 2) + [1] * 2, [2] * length])
        assert torch.equal(graphs(values, texts), kin(values, texts))
    assert paper.captured == [(2, 16)]


def test_the_first_call_of_a_shape_is_the_plain_one():
    graphs = Graphs(pair := Pair(), 8, paper := Paper())
    graphs(torch.ones(3, 2))
    assert (pair.shapes, paper.captured) == ([(3, 2)], [])


def test_a_graph_that_is_no_faster_is_not_used():
    graphs = Graphs(pair := Pair(), 8, paper := Paper(slower=True))
    for _ in range(3):
        graphs(torch.ones(3, 2))
    before, replays = len(pair.shapes), paper.replays
    graphs(torch.ones(3, 2))
    assert pair.shapes[before:] == [(3, 2)] and paper.replays == replays
    assert measured(Compute("eager", "fp32", {"pair": graphs})) == {"pair 4x2": {"plain_ms": 2000.0, "graph_ms": 3000.0}}


def test_where_capturing_raises_the_plain_call_answers_and_it_is_not_tried_again():
    graphs = Graphs(Pair(), 8, paper := Paper(able=False))
    for rows in (1, 1, 1, 2, 2, 2):
        assert torch.equal(graphs(torch.ones(rows, 2))[1], torch.full((rows,), 2.0))
    assert len(paper.captured) == 1


def test_a_graph_that_says_something_else_is_not_used():
    class Fickle(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            double, total = super().forward(x)
            return (double, total) if len(x) < 4 else (-double, total)  # rows that see how many they are

    graphs = Graphs(Fickle(), 8, Paper())
    for _ in range(3):
        assert torch.equal(graphs(torch.ones(3, 2))[0], torch.full((3, 2), 2.0))


def test_memory_is_bounded():
    graphs = Graphs(Pair(), 8, paper := Paper())
    for width in range(1, _MOST + 20):
        graphs(torch.ones(1, width))
        graphs(torch.ones(1, width))
    assert len(graphs._known) == _MOST
    captured = len(paper.captured)
    graphs(torch.ones(1, 1))
    assert len(paper.captured) == captured, "forgotten: it counts as new"
