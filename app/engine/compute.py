"""What computes: eager PyTorch, or what OpenVINO or Inductor made of a program's networks. One seam: name → callable.

A compiled form lies in a folder, one file or folder per network: made by `engine/choosing.py` in its own process, read by the
worker, which needs no compiler for it, and no torch for OpenVINO's. What needs torch is in `engine/modules.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.tasks.base import Networks

Engine = Literal["eager", "openvino", "inductor"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """Networks ready to be called with tensors on `device` (OpenVINO's: with NumPy's arrays)."""

    engine: Engine
    precision: Precision
    networks: Networks
    device: str = "cpu"
    exact: Networks | None = None
    """The same in fp32, which decide where classes are so close that rounding could (`agreement.close`)."""

    def apart(self) -> list[Compute]:
        """What computes, and what decides for it if anything does, each without the other: neither hides what the other says."""
        alone = replace(self, exact=None)
        return [alone] if self.exact is None else [alone, replace(alone, precision="fp32", networks=self.exact)]


def compiled(
    engine: Engine,
    precision: Precision,
    folder: Path,
    names: Sequence[str],
    threads: int,
    device: str = "cpu",
    *,
    classifies: bool = False,
) -> Compute:
    """Read what `compile_into` wrote. OpenVINO computes on the CPU alone. `classifies`: fp32 decides what is close."""

    def read(precision: Precision) -> Networks:
        if engine == "openvino":
            return {name: _read_openvino(folder, name, precision, threads) for name in names}
        from app.engine.modules import read_inductor

        return {name: read_inductor(folder, name, precision, device) for name in names}

    exact = read("fp32") if classifies and precision != "fp32" else None
    return Compute(engine, precision, read(precision), device, exact)


def tidy(folder: Path, engine: Engine, *precisions: str) -> None:
    """Remove what `compile_into` wrote for others than the one that was chosen, and what decides for it."""
    needed: dict[Engine, tuple[str, ...]] = {
        "eager": (),
        "openvino": (".xml", ".bin"),
        "inductor": tuple(f".{precision}.pt2" for precision in precisions),
    }
    for path in folder.iterdir():
        if path.name.endswith(needed[engine]):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def openvino_precisions() -> tuple[Precision, ...]:
    """What OpenVINO offers on this CPU; nothing where it is not installed (extra `hearth[openvino]`)."""
    try:
        import openvino
    except ImportError:
        return ()
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in able else ("fp32",)


def _read_openvino(folder: Path, name: str, precision: Precision, threads: int) -> Any:
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, all threads on it
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        # Kernels made for a shape are kept, some ten a shape and 1 MB together: a hundred shapes, instead of five hundred.
        "CPU_RUNTIME_CACHE_CAPACITY": "1024",
        "ENABLE_CPU_PINNING": False,  # frontends share the cores; the scheduler knows better
    }
    request = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", hints).create_infer_request()

    def call(*arguments: np.ndarray) -> Any:
        found = request.infer(dict(enumerate(arguments)), share_inputs=True)
        outputs = tuple(np.asarray(value) for value in found.values())
        return outputs if len(outputs) > 1 else outputs[0]

    return call
