"""Threads: as many as help."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from app.engine.device import spare_threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def taking(seconds: dict[int, float]) -> None:
    spare_threads(lambda: time.sleep(seconds[torch.get_num_threads()]))


def test_a_quick_model_that_gains_little_gets_one_thread():
    taking({1: 0.001, 2: 0.001})
    assert torch.get_num_threads() == 1


def test_a_quick_model_that_gains_keeps_them():
    taking({1: 0.004, 2: 0.001})
    assert torch.get_num_threads() == 2


def test_a_slow_model_keeps_them_untried():
    taking({1: 0.02, 2: 0.0})
    assert torch.get_num_threads() == 2
