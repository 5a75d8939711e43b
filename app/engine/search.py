"""In a worker, beside its loop: wait for the choice, make ready what was chosen, let it agree with eager once more."""

from __future__ import annotations

import threading
from copy import deepcopy

import torch

from app.engine.agreement import agree, probes
from app.engine.choosing import Choice, Order, chosen
from app.engine.compute import Compute, compiled, eager
from app.engine.runner import Runner
from app.errors import ModelFailed
from app.logs import log
from app.tasks.base import Arrays, Program


def lowered(program: Program, module: torch.nn.Module, samples: list[Arrays], device: str) -> tuple[Compute, Choice]:
    """bf16 on a device that needs no compiler for it (a GPU), if it agrees with fp32; else fp32. `module` is moved in place."""
    full = eager(program, module, device)
    batch = probes(samples)
    expected = Runner(full, program, lambda *_: None).run(batch)
    half = eager(program, deepcopy(module), device, "bf16")
    difference = agree(expected, Runner(half, program, lambda *_: None).run(batch))  # type: ignore[arg-type]
    if difference or not samples:
        return full, Choice("eager", "fp32", f"bf16 does not agree with fp32: {difference or 'there is no sample to try'}", {})
    return half, Choice("eager", "bf16", "agrees with fp32", {})


class Search:
    """A thread that ends with `found`, or with `why` eager fp32 stays. The worker polls `done`.

    It holds the interpreter's lock for moments only: choosing is another process, and compiled networks are read outside of it.
    """

    def __init__(self, order: Order, program: Program, module: torch.nn.Module, samples: list[Arrays]) -> None:
        self.found: tuple[Compute, Choice] | None = None
        self.why = ""
        self._order = order
        self._program = program
        self._module = module
        self._samples = samples
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Nothing more will come."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._look()
        except Exception as error:  # noqa: BLE001  whatever it is, the model goes on as it is
            self.why = f"eager, because the search for something faster failed: {error}"
            log.exception("the search for a faster engine failed; eager fp32 stays")

    def _look(self) -> None:
        choice = chosen(self._order)
        reference = compute = eager(self._program, self._module)
        if choice.engine != "eager":
            folder, threads = self._order.folder(), choice.threads or self._order.threads
            compute = compiled(choice.engine, choice.precision, folder, list(reference.networks), threads)
        elif choice.precision != "fp32":
            compute = eager(self._program, deepcopy(self._module), precision=choice.precision)
        if compute is not reference:
            batch = probes(self._samples)
            expected = Runner(reference, self._program, lambda *_: None).run(batch)
            if difference := agree(expected, Runner(compute, self._program, lambda *_: None).run(batch)):  # type: ignore[arg-type]
                raise ModelFailed(f"{choice.engine} {choice.precision} no longer agrees with eager: {difference}")
        self.found = compute, choice
