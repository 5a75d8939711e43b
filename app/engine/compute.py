"""What computes: eager PyTorch, or what OpenVINO or Inductor made of a program's networks. One seam: name → callable.

A compiled form lies in a folder, one file per network: made by `engine/choosing.py` in its own process, read by the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from app.tasks.base import Arrays, Networks, Program

Engine = Literal["eager", "openvino", "inductor"]
Precision = Literal["fp32", "bf16"]


Calls = Mapping[str, tuple[Tensor, ...]]
"""Arguments that each network was once called with."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Networks ready to be called with tensors on `device`."""

    engine: Engine
    precision: Precision
    networks: Networks
    device: torch.device


def eager(program: Program, module: nn.Module, device: str = "cpu", precision: Precision = "fp32") -> Compute:
    """The modules themselves. `module` is moved and cast in place."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    networks = program.networks(module.to(torch.device(device), dtype))
    return Compute(
        "eager", precision, {name: network.to(torch.device(device)) for name, network in networks.items()}, torch.device(device)
    )


def compiled(engine: Engine, precision: Precision, folder: Path, names: Sequence[str], threads: int) -> Compute:
    """Read what `compile_into` wrote."""
    read = {"openvino": _read_openvino, "inductor": _read_inductor}[engine]
    networks = {name: read(folder, name, precision, threads) for name in names}
    return Compute(engine, precision, networks, torch.device("cpu"))


def compile_into(
    folder: Path, engine: Engine, networks: Mapping[str, nn.Module], calls: Mapping[str, tuple[Tensor, ...]]
) -> None:
    """Compile each network for any first dimension and length; `calls` are arguments that each was once called with."""
    write = {"openvino": _write_openvino, "inductor": _write_inductor}[engine]
    for name, network in networks.items():
        write(folder, name, network, calls[name])


def record(program: Program, compute: Compute, samples: Sequence[Arrays]) -> Calls:
    """Run a batch and keep the arguments of each network's first call."""
    calls: dict[str, tuple[Tensor, ...]] = {}

    def recording(name: str) -> Any:
        def call(*arguments: Tensor) -> Any:
            calls.setdefault(name, arguments)
            return compute.networks[name](*arguments)

        return call

    with torch.no_grad():
        program.forward({name: recording(name) for name in compute.networks}, program.collate(samples))
    return calls


def openvino_precisions() -> tuple[Precision, ...]:
    """What OpenVINO offers on this CPU; nothing where it is not installed (extra `hearth[openvino]`)."""
    try:
        import openvino
    except ImportError:
        return ()
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in able else ("fp32",)


def _write_openvino(folder: Path, name: str, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(network, example_input=arguments)
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def _read_openvino(folder: Path, name: str, precision: Precision, threads: int) -> Any:
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, all threads on it
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "ENABLE_CPU_PINNING": False,  # frontends share the cores; the scheduler knows better
    }
    request = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", hints).create_infer_request()

    def call(*arguments: Tensor) -> Any:
        inputs = {index: argument.numpy() for index, argument in enumerate(arguments)}
        found = request.infer(inputs, share_inputs=True)
        outputs = tuple(torch.from_numpy(np.asarray(value)) for value in found.values())
        return outputs if len(outputs) > 1 else outputs[0]

    return call


def _write_inductor(folder: Path, name: str, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    raise NotImplementedError


def _read_inductor(folder: Path, name: str, precision: Precision, threads: int) -> Any:
    raise NotImplementedError
