"""Batch → outputs: collate, move to the device, run, move back, split. The only place where devices and dtypes change.

What fails is cut in half and run again until the one sample that fails stands alone: it gets the error, its neighbours
get their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from app.errors import HearthError, ModelFailed, OutOfMemory
from app.logs import log
from app.tasks.base import Arrays, Output, Program

Observe = Callable[[str, float], None]
"""Told each stage's name and seconds."""


class Runner:
    """Runs one module on one device, one batch at a time."""

    def __init__(self, module: torch.nn.Module, program: Program, device: torch.device, observe: Observe) -> None:
        self._module = module.to(device)
        self._program = program
        self._device = device
        self._observe = observe

    def run(self, samples: Sequence[Arrays]) -> list[Output | HearthError]:
        """One output, or error, per sample, in order."""
        try:
            outputs = self._forward(samples)
        except Exception as error:  # noqa: BLE001  a model may raise anything; it must not end the worker
            if len(samples) == 1:
                return [_meaning(error)]
            half = len(samples) // 2
            if isinstance(error, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
            return [*self.run(samples[:half]), *self.run(samples[half:])]
        return [_checked(output) for output in outputs]

    @torch.inference_mode()
    def _forward(self, samples: Sequence[Arrays]) -> list[Output]:
        started = time.monotonic()
        batch = self._program.collate(samples)
        collated = time.monotonic()
        on_device = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        results = self._program.forward(self._module, on_device)
        arrays = {name: tensor.cpu().numpy() for name, tensor in results.items()}
        outputs = self._program.split(arrays, samples)
        self._observe("collate", collated - started)
        self._observe("run", time.monotonic() - collated)
        if len(outputs) != len(samples):
            raise ModelFailed(f"the model gave {len(outputs)} outputs for {len(samples)} inputs")
        return outputs


def _meaning(error: Exception) -> HearthError:
    if isinstance(error, HearthError):
        return error
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return OutOfMemory("this input alone needs more memory than the device has; send a smaller one")
    log.exception("the model raised")
    return ModelFailed(f"the model raised {type(error).__name__} on this input; the server's log has the details")


def _checked(output: Output) -> Output | HearthError:
    for name, array in output.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return ModelFailed(f"the model gave {name!r} values that are not finite numbers")
    return output
