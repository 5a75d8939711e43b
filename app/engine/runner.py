"""Batch → outputs: collate, move to the device, run, move back, split. The only place where devices change.

What fails is cut in half and run again until the one sample that fails stands alone: it gets the error, its neighbours
get their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.engine.compute import Compute
from app.errors import HearthError, ModelFailed, OutOfMemory
from app.logs import log
from app.tasks.base import Arrays, Output, Program

Observe = Callable[[str, float], None]
"""Told each stage's name and seconds."""


class Runner:
    """Runs one model, one batch at a time. `compute` may be exchanged between two batches."""

    def __init__(self, compute: Compute, program: Program, observe: Observe) -> None:
        self.compute = compute
        self.no_room_for = 0
        """How many samples the smallest batch had that ran out of memory in the last `run`; 0: none did."""
        self._program = program
        self._observe = observe

    def run(self, samples: Sequence[Arrays]) -> list[Output | HearthError]:
        """One output, or error, per sample, in order."""
        self.no_room_for = 0
        return self._run(samples)

    def _run(self, samples: Sequence[Arrays]) -> list[Output | HearthError]:
        try:
            outputs = self._forward(samples)
        except Exception as error:  # noqa: BLE001  a model may raise anything; it must not end the worker
            if _no_memory(error):
                self.no_room_for = len(samples)
                torch.cuda.empty_cache()
            if len(samples) == 1:
                return [_meaning(error)]
            half = len(samples) // 2
            return [*self._run(samples[:half]), *self._run(samples[half:])]
        return [_checked(output) for output in outputs]

    @torch.inference_mode()
    def _forward(self, samples: Sequence[Arrays]) -> list[Output]:
        started = time.monotonic()
        batch = self._program.collate(samples)
        collated = time.monotonic()
        device = self.compute.device
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        results = self._program.forward(self.compute.networks, on_device)
        arrays = {name: tensor.cpu().numpy() for name, tensor in results.items()}
        outputs = self._program.split(arrays, samples)
        self._observe("collate", collated - started)
        self._observe("run", time.monotonic() - collated)
        if len(outputs) != len(samples):
            raise ModelFailed(f"the model gave {len(outputs)} outputs for {len(samples)} inputs")
        return outputs


def _no_memory(error: Exception) -> bool:
    """PyTorch's allocators for CUDA and for the CPU, and Python's own."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _meaning(error: Exception) -> HearthError:
    if isinstance(error, HearthError):
        return error
    if _no_memory(error):
        return OutOfMemory("this input alone needs more memory than the device has; send a smaller one")
    log.exception("the model raised")
    return ModelFailed(f"the model raised {type(error).__name__} on this input; the server's log has the details")


def _checked(output: Output) -> Output | HearthError:
    for name, array in output.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return ModelFailed(f"the model gave {name!r} values that are not finite numbers")
    return output
