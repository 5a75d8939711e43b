"""Threads: as many as help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from app.engine import device


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """By number of threads the seconds of a call, on a clock of paper."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def found(seconds: dict[int, float]) -> None:
        def call() -> None:
            clock.now += seconds[torch.get_num_threads()]

        device.spare_threads(call)

    return found


def test_a_quick_model_that_gains_little_gets_one_thread(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.001, 2: 0.001})
    assert torch.get_num_threads() == 1


def test_a_quick_model_that_gains_keeps_them(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.004, 2: 0.001})
    assert torch.get_num_threads() == 2


def test_a_slow_model_keeps_them_untried(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.02, 2: 0.0})
    assert torch.get_num_threads() == 2
