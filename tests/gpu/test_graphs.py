"""CUDA graphs: the same answers as eager, and what they are chosen for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from app.engine import graphs
from app.engine.graphs import graphed, measured
from app.engine.runner import Runner
from tests.gpu.conftest import NEEDS_GPU, Shipped
from tests.gpu.test_flight import same

pytestmark = NEEDS_GPU


class Always(graphs.Cuda):
    """A device on which the second call of two measures faster: the graph."""

    plain = False

    def seconds(self, call: Callable[[], Any]) -> float:
        call()
        self.plain = not self.plain
        return 2.0 if self.plain else 1.0


def test_graphs_say_what_eager_says(model: Shipped, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "Cuda", Always)
    plain = model.runner("cuda")
    compute = graphed(model.compute("cuda"), 64)
    runner = Runner(compute, model.program, lambda *_: None)
    for batch in (model.samples[:1], model.samples[:3], model.samples, model.samples[::-1], model.samples[1:2]):
        for _ in range(4):
            assert same(runner.run(batch), plain.run(batch))
    assert {key.split()[0] for key in measured(compute)} == set(compute.networks), "each network was captured"


def test_two_in_flight_by_graphs(model: Shipped, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "Cuda", Always)
    runner = Runner(graphed(model.compute("cuda"), 64), model.program, lambda *_: None)
    one, two = model.samples[:1], model.samples[1:2]
    for batch in (one, one, two, two):
        runner.run(batch)
    alone = runner.run(one), runner.run(two)
    for _ in range(20):
        first, second = runner.launch(one), runner.launch(two)
        assert same(runner.land(first), alone[0])
        assert same(runner.land(second), alone[1])


def test_a_network_that_asks_the_device_goes_on_without_graphs():
    def asks(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool((x > 0).any()) else x

    network = graphs.Graphs(asks, 8, graphs.Cuda())
    with torch.inference_mode():
        for _ in range(4):
            assert network(torch.ones(2, 2, device="cuda")).tolist() == [[2.0, 2.0]] * 2
        assert network(-torch.ones(2, 2, device="cuda")).tolist() == [[-1.0, -1.0]] * 2
