"""Batch → outputs: launch (collate, move to the device, run, move back) and land (wait, split). Devices change here alone.

What fails is cut in half and run again until the one sample that fails stands alone: it gets the error, its neighbours
get their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.engine.agreement import agree, close
from app.engine.compute import Compute
from app.engine.lane import Lane, Mark, Past, lane_of
from app.errors import HearthError, ModelFailed, OutOfMemory
from app.logs import log
from app.tasks.base import Arrays, Batch, Output, Program

Observe = Callable[[str, float], None]
"""Told each stage's name and seconds."""

_NUMBERS = "biuf"  # kinds that an answer may be made of (`wire/frames.py` carries no others)


@dataclass(slots=True)
class Pending:
    """A batch between launch and landing; keeps alive what the device reads and writes."""

    samples: Sequence[Arrays]
    mark: Mark = field(default_factory=Past)
    collated: float = 0.0
    here: Batch = field(default_factory=dict)
    there: Batch = field(default_factory=dict)
    back: Batch = field(default_factory=dict)
    failure: HearthError | None = None
    """Why it could not be launched, without a traceback: that would keep the failed forward's tensors alive."""


class Runner:
    """Runs one model. Up to `depth` batches may be pending; they land in order."""

    def __init__(self, compute: Compute, program: Program, observe: Observe, lane: Lane | None = None) -> None:
        self.no_room_for = 0
        """How many samples the smallest batch had that ran out of memory in the last `land`; 0: none did."""
        self._program = program
        self._observe = observe
        self._landed = 0.0
        self.use(compute, lane)

    def use(self, compute: Compute, lane: Lane | None = None) -> None:
        """Compute by this from now on. Between two batches: none may be pending."""
        self.compute = compute
        self.lane = lane or lane_of(compute)
        self.depth = self.lane.depth
        self._judge = Runner(compute.apart()[1], self._program, _decided(self._observe), self.lane) if compute.exact else None

    def run(self, samples: Sequence[Arrays]) -> list[Output | HearthError]:
        """One output, or error, per sample, in order."""
        return self.land(self.launch(samples))

    def launch(self, samples: Sequence[Arrays]) -> Pending:
        """Set the device to work. On CUDA this waits for nothing; on the CPU the work is then done."""
        pending = Pending(samples)
        try:
            self._start(pending)
        except Exception as error:  # noqa: BLE001  a model may raise anything; it must not end the worker
            pending.failure = self._failure(error, samples)
        pending.mark = self.lane.mark()
        return pending

    def land(self, pending: Pending) -> list[Output | HearthError]:
        """Wait for a batch; one output, or error, per sample, in order."""
        self.no_room_for = 0
        results = self._land(pending)
        self._landed = time.monotonic()
        return results

    def _land(self, pending: Pending) -> list[Output | HearthError]:
        samples = pending.samples
        try:
            pending.mark.synchronize()
            if pending.failure is None:
                return [_checked(output) for output in self._outputs(pending)]
        except Exception as error:  # noqa: BLE001  as above; on CUDA much is only heard of here
            pending.failure = self._failure(error, samples)
        if isinstance(pending.failure, OutOfMemory):
            self.no_room_for = len(samples)
            self.lane.make_room()
        if len(samples) == 1:
            return [pending.failure]
        half = len(samples) // 2
        return [result for part in (samples[:half], samples[half:]) for result in self._land(self.launch(part))]

    def _start(self, pending: Pending) -> None:
        started = time.monotonic()
        with self.lane.mode():
            pending.here = self.lane.pinned(self._program.collate(pending.samples))
            pending.collated = time.monotonic()
            self._observe("collate", pending.collated - started)
            pending.there = self.lane.there(pending.here)
            pending.back = self.lane.back(self._program.forward(self.compute.networks, pending.there))

    def _outputs(self, pending: Pending) -> list[Output]:
        with self.lane.mode():
            arrays = self.lane.arrays(pending.back)
        outputs = self._program.split(arrays, pending.samples)
        # A batch launched behind another one runs from that one's landing.
        self._observe("run", time.monotonic() - max(pending.collated, self._landed))
        if len(outputs) != len(pending.samples):
            raise ModelFailed(f"the model gave {len(outputs)} outputs for {len(pending.samples)} inputs")
        if self._judge and (rows := [row for row, output in enumerate(outputs) if close(output)]):
            self._decide(self._judge, pending.samples, outputs, rows)
        return outputs

    @staticmethod
    def _decide(judge: Runner, samples: Sequence[Arrays], outputs: list[Output], rows: Sequence[int]) -> None:
        """Put fp32's scores into those rows. Embeddings stay: an index shall be of one precision. So does what cannot be decided,
        which is better than none.
        """
        for row, result in zip(rows, judge.run([samples[row] for row in rows]), strict=True):
            if isinstance(result, HearthError):
                log.error("a close call stays as it is: %s", result.detail)
            else:
                outputs[row] = outputs[row] | {"scores": result["scores"]}

    def _failure(self, error: Exception, samples: Sequence[Arrays]) -> HearthError:
        """What the caller hears. Raises what no retry can mend: then the process must end, and its replacement answers."""
        if isinstance(error, HearthError):
            return error.with_traceback(None)
        if self.lane.no_memory(error):
            return OutOfMemory("this input alone needs more memory than the device has; send a smaller one")
        if self.lane.broken(error):
            raise error
        if len(samples) == 1:
            log.error("the model raised", exc_info=error)
        return ModelFailed(f"the model raised {type(error).__name__} on this input; the server's log has the details")


def differs(expected: Sequence[Output], compute: Compute, program: Program, samples: Sequence[Arrays]) -> str:
    """Empty if it says the same, what decides for it says the same, and both together leave no class to rounding."""

    def said(compute: Compute) -> list[Output | HearthError]:
        return Runner(compute, program, lambda *_: None).run(samples)

    for one in compute.apart():
        if difference := agree(expected, said(one)):
            return difference
    return agree(expected, said(compute), decided=True) if compute.exact else ""


def _decided(observe: Observe) -> Observe:
    """What is told of a judge's stages: nothing of its Runner's, which ends with the last who uses it."""
    return lambda stage, seconds: observe("decide", seconds) if stage == "run" else None


def _checked(output: Output) -> Output | HearthError:
    for name, array in output.items():
        if array.dtype.kind not in _NUMBERS:
            return ModelFailed(f"the model gave {name!r} as {array.dtype}, which is no plain number")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return ModelFailed(f"the model gave {name!r} values that are not finite numbers")
    return output
