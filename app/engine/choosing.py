"""Choose what computes a model: measure every engine and precision on the card's sample, keep the fastest that agrees.

Measuring and compiling happen in a process of its own at low priority (`python -m app.engine.choosing PARENT`, its order on
stdin), so that no request waits for a compiler and nothing of it stays in the worker's memory. What it made lies in
`$HEARTH_HOME/compute/<model>-<key>/`: one file per compiled network, what proves them right without the module, and, written
last, `choice.json`. So the next worker of this model begins with them (`engine/kept.py`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch

from app.card import Card, ModuleSource
from app.engine import device
from app.engine.agreement import classifies, probes
from app.engine.compute import Compute, Engine, Precision, compiled, openvino_precisions, tidy
from app.engine.lane import lane_of
from app.engine.loader import load
from app.engine.modules import compile_into, eager, inductor_precisions, record, rounded
from app.engine.order import KEY, Choice, Order
from app.engine.runner import Runner, differs
from app.errors import ModelFailed
from app.logs import configure, log
from app.process import child_command, die_with_parent, set_name
from app.settings import Settings
from app.tasks import TASKS, card_samples, make_codec, resolve
from app.tasks.base import Arrays, Program

_COMPANY = 8  # samples in the larger of the two batches that are timed
_BARREN_ROUNDS = 5
_JUDGED = 1.1  # what fp32 costs that decides close calls (`benchmarks/deciding.py`), with twice the memory
_WITH_TORCH = 1.1  # a worker that needs torch has 500 MB more and begins two seconds later: for a tenth that is not worth it
_MOST_S = 60.0
_KEPT_PER_MODEL = 4  # e.g. fp32 and auto, for two versions of a model


Key = tuple[Engine, Precision]
T = TypeVar("T")


def chosen(order: Order) -> Choice:
    """The choice for this order: read, or made now by a process of its own. Raises ModelFailed when that process fails."""
    folder = order.folder()
    if not (folder / "choice.json").exists():
        made = subprocess.run(
            child_command("app.engine.choosing"), input=msgspec.json.encode(order), stdout=subprocess.DEVNULL, check=False
        )
        if made.returncode != 0:
            raise ModelFailed(f"choosing what computes ended with status {made.returncode}; see the log")
    return msgspec.json.decode((folder / "choice.json").read_bytes(), type=Choice)


class _Trial:
    """The candidates for one model."""

    def __init__(self, order: Order, folder: Path) -> None:
        self._order = order
        self._folder = folder
        card = Card.model_validate_json(order.card)
        files = {name: Path(path) for name, path in order.files.items()}
        if isinstance(card.source, ModuleSource):  # tracing would freeze a branch that depends on the input: then it is refused
            warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        self._module = load(card, files)
        self._program: Program = resolve(TASKS[card.task].program)(card, files)
        codec = make_codec(card, files, self._program.describe(self._module))
        self._samples = [sample.arrays for sample in card_samples(card, codec)]
        self._probes = probes(self._samples)
        self._reference = eager(self._program, self._module)
        self._expected: list[Any] = Runner(self._reference, self._program, lambda *_: None).run(self._probes)
        self._scored = classifies(self._expected)
        self._compiled: set[Precision] = set()  # by Inductor

    def candidates(self) -> dict[Key, Callable[[], Compute]]:
        """What may be tried, by how it is made."""
        names = list(self._reference.networks)
        found: dict[Key, Callable[[], Compute]] = {("eager", "fp32"): lambda: self._reference}
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            found["eager", "bf16"] = lambda: rounded(self._program, self._module, classifies=self._scored)
        for precision in openvino_precisions():
            found["openvino", precision] = lambda p=precision: self._openvino(p, names)  # type: ignore[misc]
        order = self._order
        # Minutes of compiling gain nothing beside OpenVINO. CPU time of 1 · 8 samples in bf16, against OpenVINO's: cifar-resnet
        # +24 % · +6 %, ResNet-50 +42 % · +9 %, Wav2Vec2 +18 % · +29 % (4), MiniLM −20 % · −4 % (by the clock −13 % · +8 %).
        if order.engine == "inductor" or not openvino_precisions():
            for precision in inductor_precisions():
                found["inductor", precision] = lambda p=precision: self._inductor(p, names)  # type: ignore[misc]
        fitting = {
            (engine, precision): make
            for (engine, precision), make in found.items()
            if order.engine in ("auto", engine) and (order.precision == "auto" or precision == "fp32")
        }
        return fitting or {("eager", "fp32"): found["eager", "fp32"]}

    def _openvino(self, precision: Precision, names: Sequence[str]) -> Compute:
        if not (self._folder / f"{names[-1]}.xml").exists():
            compile_into(self._folder, "openvino", self._reference.networks, record(self._program, self._reference, self._probes))  # type: ignore[arg-type]
        return compiled("openvino", precision, self._folder, names, self._order.threads, classifies=self._scored)

    def _inductor(self, precision: Precision, names: Sequence[str]) -> Compute:
        self._compile_by_inductor(precision)
        if self._scored and precision != "fp32":
            self._compile_by_inductor("fp32")
        return compiled("inductor", precision, self._folder, names, self._order.threads, classifies=self._scored)

    def _compile_by_inductor(self, precision: Precision) -> None:
        if precision in self._compiled:
            return
        plain = self._reference if precision == "fp32" else rounded(self._program, self._module, classifies=False)
        calls = record(self._program, plain, self._probes)
        compile_into(self._folder, "inductor", plain.networks, calls, precision)  # type: ignore[arg-type]
        self._compiled.add(precision)

    def choose(self) -> Choice:
        """Build, compare, time in turns, and keep the fastest in the geometric mean of one sample and several."""
        able: dict[Key, Compute] = {}
        measured: dict[str, Any] = {}
        for key, make in self.candidates().items():
            try:
                compute = make()
                difference = differs(self._expected, compute, self._program, self._probes)
            except Exception as error:  # noqa: BLE001  a compiler may raise anything; then its engine is not used
                difference = f"{type(error).__name__}: {error}"[:300]
            measured[" ".join(key)] = {"differs": difference} if difference else {}
            if not difference:
                able[key] = compute
        many = self._order.threads
        times = self._times({key: (compute, many) for key, compute in (able or {("eager", "fp32"): self._reference}).items()})
        for key, (alone, several) in times.items():
            measured[" ".join(key)] = {"alone_ms": round(1000 * alone, 2), f"batch_of_{_COMPANY}_ms": round(1000 * several, 2)}
        best = min(times, key=lambda key: sqrt(times[key][0] * times[key][1]) * self._burden(key, able.get(key)))
        why = f"fastest of {len(times)} that agree with eager fp32, of {len(measured)} tried"
        quick = times[best][1] < device.QUICK_S
        threads = self._threads(best, able.get(best, self._reference)) if quick else many
        decides = "fp32" if best in able and able[best].exact else ""
        return Choice(best[0], best[1], why, measured, threads, decides)

    @staticmethod
    def _burden(key: Key, compute: Compute | None) -> float:
        """By what its time counts more than it is."""
        return (1.0 if key[0] == "openvino" else _WITH_TORCH) * (_JUDGED if compute and compute.exact else 1.0)

    def _threads(self, key: Key, many: Compute) -> int:
        """One for a quick model, if more are hardly faster: what they spend on each other, frontends can use.

        For others it would halve the throughput wherever the measuring was disturbed. Inductor's are baked in.
        """
        engine, precision = key
        if self._order.threads == 1 or engine == "inductor":
            return self._order.threads
        one = many if engine == "eager" else compiled(engine, precision, self._folder, list(many.networks), 1)
        times = self._times({1: (one, 1), self._order.threads: (many, self._order.threads)})
        alone, several = (times[1][size] / times[self._order.threads][size] for size in (0, 1))
        return 1 if sqrt(alone * several) < device.HARDLY_FASTER else self._order.threads

    def _times(self, able: dict[T, tuple[Compute, int]]) -> dict[T, tuple[float, float]]:
        """Seconds for one sample and for several: the best of as many rounds as it takes, all candidates in each round.

        Others may want the cores meanwhile. So it ends when the last rounds have found no better times, not after a fixed count.
        """
        one = self._samples[:1]
        batches = [one, one * _COMPANY]
        best = {key: [float("inf")] * 2 for key in able}
        started, barren, turn = time.monotonic(), 0, list(able.items())
        while barren < _BARREN_ROUNDS and time.monotonic() - started < _MOST_S:
            barren += 1
            turn.reverse()  # OpenMP's threads spin for a while: who comes after eager PyTorch is slower
            for key, (compute, threads) in turn:
                for size, batch in reversed([*enumerate(batches)]):  # one sample finds weights in the cache, as in service
                    seconds = self._seconds(compute, batch, threads)
                    if seconds < 0.95 * best[key][size]:
                        barren = 0
                    best[key][size] = min(best[key][size], seconds)
        return {key: (alone, several) for key, (alone, several) in best.items()}

    def _seconds(self, compute: Compute, samples: Sequence[Arrays], threads: int) -> float:
        device.leave_cores_to(compute.engine, threads)  # as in service
        lane, collated = lane_of(compute), self._program.collate(samples)
        started = time.perf_counter()
        with lane.mode():
            self._program.forward(compute.networks, lane.there(lane.pinned(collated)))
        return time.perf_counter() - started

    def prove(self, *, compiled: bool) -> None:
        """Keep what the module said of the probes and, if it is not needed any more, of itself."""
        said = {f"{row}.{name}": array for row, output in enumerate(self._expected) for name, array in output.items()}
        np.savez(self._folder / "proof.npz", **said)
        if not compiled:
            return
        about = {"networks": list(self._reference.networks), "meta": self._program.describe(self._module)}
        (self._folder / "module.json").write_bytes(msgspec.json.encode(about))


def make(order: Order) -> Choice:
    """Choose, and write the choice and its files beside and renamed."""
    device.keep_memory()
    device.settle("cpu", order.threads)
    folder = order.folder()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    beside.mkdir(parents=True)
    try:
        trial = _Trial(order, beside)
        choice = trial.choose()
        tidy(beside, choice.engine, choice.precision, choice.close_calls)
        if (choice.engine, choice.precision) != ("eager", "fp32"):
            trial.prove(compiled=choice.engine != "eager")
        (beside / "choice.json").write_bytes(msgspec.json.encode(choice))
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return choice


def sweep(root: Path, model: str) -> None:
    """Remove what killed processes left half made, and what this model has not used for longest. For the lock's holder."""
    for part in root.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)
    made = sorted(root.glob(f"{model}-*/choice.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for choice in made[_KEPT_PER_MODEL - 1 :]:
        if choice.parent.name[: -KEY - 1] == model:
            shutil.rmtree(choice.parent, ignore_errors=True)


def main() -> None:
    """Entry of the choosing process: one at a time on this machine."""
    die_with_parent(int(sys.argv[1]))
    set_name("hearth choosing")
    os.nice(10)
    configure(Settings.from_environment())
    warnings.simplefilter("ignore")  # tracing says much that concerns its authors
    logging.getLogger("transformers").setLevel(logging.ERROR)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    root = Path(order.home) / "compute"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(root, Card.model_validate_json(order.card).name)
        if not (order.folder() / "choice.json").exists():
            choice = make(order)
            log.info("%s: %s %s, %s", order.folder().name, choice.engine, choice.precision, choice.why)


if __name__ == "__main__":
    main()
