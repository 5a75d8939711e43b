"""How a worker begins with a module: load it, compute by PyTorch itself, warm up. Everything here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from app.card import Card
from app.engine import device as devices
from app.engine.agreement import classifies, probes
from app.engine.compute import Compute
from app.engine.graphs import graphed, measured
from app.engine.loader import load
from app.engine.modules import eager, rounded
from app.engine.order import Choice
from app.engine.runner import Observe, Runner, differs
from app.errors import HearthError
from app.tasks.base import Arrays, Files, Program


@dataclass(frozen=True, slots=True)
class Begun:
    """A model that answers."""

    runner: Runner
    choice: Choice
    meta: dict[str, Any]
    samples: list[Arrays]


def begin(
    card: Card,
    files: Files,
    program: Program,
    samples: Callable[[dict[str, Any]], list[Arrays]],
    device: str,
    threads: int | None,
    precision: str,
    observe: Observe,
) -> Begun:
    """Raises HearthError when a model cannot be loaded or cannot run its own samples."""
    devices.settle(device, threads)
    module = load(card, files)
    meta = program.describe(module)
    found = samples(meta)
    compute, choice = eager(program, module, device), Choice("eager", "fp32", "", {})
    if device != "cpu":
        if precision == "auto":
            compute, choice = lowered(program, module, found, device)
        compute = graphed(compute, card.limits.max_batch)
    runner = Runner(compute, program, observe)
    _warm_up(runner, found)
    if device == "cpu" and found and threads is None:
        devices.spare_threads(lambda: runner.run(found))
    if device != "cpu":  # what comes twice gets a graph
        _warm_up(runner, found[:1])
        _warm_up(runner, found[:1])
        choice = msgspec.structs.replace(choice, measured=measured(compute))
    return Begun(runner, choice, meta, found)


def _warm_up(runner: Runner, samples: list[Arrays]) -> None:
    """The first forward is the slow one, and a model that cannot run its own sample is not ready."""
    for result in runner.run(samples) if samples else []:
        if isinstance(result, HearthError):
            raise result


def lowered(program: Program, module: torch.nn.Module, samples: list[Arrays], device: str) -> tuple[Compute, Choice]:
    """bf16 on a device that needs no compiler for it (a GPU), if it agrees with fp32; else fp32. `module` is moved in place."""
    full = eager(program, module, device)
    batch = probes(samples)
    expected = Runner(full, program, lambda *_: None).run(batch)
    half = rounded(program, module, device, classifies=classifies(expected))
    difference = differs(expected, half, program, batch)  # type: ignore[arg-type]
    if difference or not samples:
        return full, Choice("eager", "fp32", f"bf16 does not agree with fp32: {difference or 'there is no sample to try'}", {})
    return half, Choice("eager", "bf16", "agrees with fp32", {}, close_calls="fp32" if half.exact else "")
