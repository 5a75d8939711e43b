"""Compiled networks of an earlier start. A worker begins with them, without the module, once they say of the probes what it said.

That takes half a second and half the memory. Whatever is not as it should be, the worker begins eagerly and has it made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.engine import device
from app.engine.agreement import agree, classifies, probes
from app.engine.compute import Compute, compiled
from app.engine.order import Choice, Order
from app.engine.runner import Runner
from app.errors import ModelFailed
from app.logs import log
from app.tasks.base import Arrays, Output, Program


@dataclass(frozen=True, slots=True)
class Kept:
    """What a worker needs to begin."""

    compute: Compute
    choice: Choice
    meta: dict[str, Any]


def kept(order: Order, program: Program, samples: Callable[[dict[str, Any]], list[Arrays]]) -> Kept | None:
    """The compiled networks for this order, if there are any and they still say what the module said.

    `samples`: from what the module told of itself (`Program.describe`) to the card's samples.
    """
    folder = order.folder()
    try:
        choice = msgspec.json.decode((folder / "choice.json").read_bytes(), type=Choice)
    except FileNotFoundError:
        return None
    if choice.engine == "eager":
        return None
    try:
        if choice.engine == "inductor":
            device.settle("cpu", order.threads)
        about = msgspec.json.decode((folder / "module.json").read_bytes())
        threads, scored = choice.threads or order.threads, classifies(_said(folder))
        compute = compiled(choice.engine, choice.precision, folder, about["networks"], threads, classifies=scored)
        still_agrees(folder, compute, program, samples(about["meta"]))
        device.forget_files(folder)
        with suppress(OSError):
            os.utime(folder / "choice.json")  # `choosing.sweep` removes what was not used for longest
    except Exception:  # noqa: BLE001  whatever it is, eager does not need it
        log.exception("the compiled networks in %s are of no use; beginning eagerly", folder)
        with suppress(OSError):  # a home that cannot be written to
            (folder / "choice.json").unlink()
        return None
    return Kept(compute, choice, about["meta"])


def still_agrees(folder: Path, compute: Compute, program: Program, samples: list[Arrays]) -> None:
    """Raise ModelFailed unless `compute` says of the probes what the module said when the choice was made, and so does what
    decides for it. That takes its memory now, and not with the first input that is close.
    """
    for one in compute.apart():
        got = Runner(one, program, lambda *_: None).run(probes(samples))
        if difference := agree(_said(folder), got):
            raise ModelFailed(f"{one.engine} {one.precision} no longer agrees with eager: {difference}")


def _said(folder: Path) -> list[Output]:
    outputs: dict[int, Output] = {}
    with np.load(folder / "proof.npz", allow_pickle=False) as proof:
        for key, array in proof.items():
            row, _, name = key.partition(".")
            outputs.setdefault(int(row), {})[name] = array
    return [outputs[row] for row in sorted(outputs)]
