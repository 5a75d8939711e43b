"""Networks that are PyTorch's own: modules as they are, compiled by Inductor, handed to OpenVINO. All of it needs torch."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.engine.compute import Compute, Engine, Precision
from app.tasks.base import Arrays, Program

_INDUCTOR = {
    "freezing": True,  # folds batch norms into convolutions and lays weights out as oneDNN wants them
    "cpp_cache_precompile_headers": False,  # two networks took 39 s of CPU with them, 31 s without; and 290 MB
    "aot_inductor.precompile_headers": False,
}
_FIXED = "fixed.json"  # in an Inductor package: each argument's sizes, null where any will do
_PACKED = "packed.pt2"

Calls = Mapping[str, tuple[Tensor, ...]]
"""Arguments that each network was once called with."""


def eager(program: Program, module: nn.Module, device: str = "cpu", precision: Precision = "fp32") -> Compute:
    """The modules themselves. `module` is moved and cast in place."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    networks = program.networks(module.to(torch.device(device), dtype))
    return Compute("eager", precision, {name: network.to(torch.device(device)) for name, network in networks.items()}, device)


def rounded(program: Program, module: nn.Module, device: str = "cpu", *, classifies: bool) -> Compute:
    """A copy of the module in bf16. `classifies`: the module itself, in fp32, decides what is close. It is moved in place."""
    half = eager(program, deepcopy(module), device, "bf16")
    return replace(half, exact=eager(program, module, device).networks if classifies else None)


def as_chosen(program: Program, module: nn.Module, precision: Precision, device: str = "cpu", *, judged: bool) -> Compute:
    """What a choice of PyTorch's own says. `judged`: fp32 decides what is close. Without a copy where nothing does."""
    return rounded(program, module, device, classifies=True) if judged else eager(program, module, device, precision)


def compile_into(
    folder: Path,
    engine: Engine,
    networks: Mapping[str, nn.Module],
    calls: Calls,
    precision: Precision = "fp32",
    device: str = "cpu",
) -> None:
    """Compile each network for any first dimension and length; `calls` are arguments that each was once called with.

    OpenVINO takes fp32 networks and makes one form for all precisions; Inductor takes networks and arguments that are cast
    already, and bakes in PyTorch's present number of threads.
    """
    if engine == "openvino":
        for name, network in networks.items():
            _write_openvino(folder, name, network, calls[name])
        return
    from torch._inductor.utils import fresh_cache

    # Inductor's cache would keep a second copy of the weights in /tmp.
    with tempfile.TemporaryDirectory(dir=folder) as scratch, fresh_cache(dir=scratch):
        for name, network in networks.items():
            arguments = tuple(argument.to(device) for argument in calls[name])
            _write_inductor(_package(folder, name, precision), network.to(device), arguments, Path(scratch))


def record(program: Program, compute: Compute, samples: Sequence[Arrays]) -> Calls:
    """Run a batch on the device of `compute` and keep the arguments of each network's first call."""
    calls: dict[str, tuple[Tensor, ...]] = {}

    def recording(name: str) -> Any:
        def call(*arguments: Tensor) -> Any:
            calls.setdefault(name, arguments)
            return compute.networks[name](*arguments)

        return call

    with torch.no_grad():
        batch = {name: torch.from_numpy(array).to(compute.device) for name, array in program.collate(samples).items()}
        program.forward({name: recording(name) for name in compute.networks}, batch)
    return calls


def inductor_precisions(device: str = "cpu") -> tuple[Precision, ...]:
    """What Inductor offers on this device; nothing where the C++ compiler that it calls is not installed."""
    if shutil.which("clang++" if sys.platform == "darwin" else "g++") is None:
        return ()
    on_cuda = torch.device(device).type == "cuda"
    able = torch.cuda.is_bf16_supported() if on_cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("bf16", "fp32") if able else ("fp32",)


def _write_openvino(folder: Path, name: str, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    import openvino

    with torch.no_grad():
        model = openvino.convert_model(network, example_input=arguments)
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def _package(folder: Path, name: str, precision: Precision) -> Path:
    return folder / f"{name}.{precision}.pt2"


def _write_inductor(package: Path, network: nn.Module, arguments: tuple[Tensor, ...], scratch: Path) -> None:
    """An unpacked package: the loader copies a packed one to /tmp first, where a worker that is killed would leave it."""
    from torch import _inductor

    # What has the size 1 in the example is taken for 1 ever after.
    examples = tuple((torch.cat([a, a]) if len(a) == 1 else a).contiguous() for a in arguments)
    shapes = tuple({dim: _freedom(dim, a.ndim) for dim in range(a.ndim)} for a in examples)
    with torch.no_grad():
        exported = torch.export.export(network, examples, dynamic_shapes=shapes)
        packed = scratch / package.name
        _inductor.aoti_compile_and_package(exported, package_path=str(packed), inductor_configs=dict(_INDUCTOR))
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(package)
    inputs = [node.meta["val"] for node in exported.graph.find_nodes(op="placeholder")][-len(examples) :]
    fixed = [[size if isinstance(size, int) else size.node.maybe_as_int() for size in value.shape] for value in inputs]
    (package / _FIXED).write_text(json.dumps(fixed))
    try:
        _loader(package, arguments[0].device)
    except RuntimeError:  # PyTorch 2.11 knows packed ones alone
        shutil.copyfile(packed, package / _PACKED)


def _freedom(dim: int, dims: int) -> Any:
    """First dimensions vary, or the export fails; the second may, where there are two or three: a length, or so many features."""
    if dim == 0:
        return torch.export.Dim.DYNAMIC
    return torch.export.Dim.AUTO if dim == 1 and dims <= 3 else torch.export.Dim.STATIC


def _loader(package: Path, device: torch.device) -> Any:
    index = (device.index or 0) if device.type == "cuda" else -1
    # Loader(path, model's name in it, without locks because one thread calls it, instances, device's index)
    return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, index)


def read_inductor(folder: Path, name: str, precision: Precision, place: str) -> Any:
    """The loader in C++: `aoti_load_package` first imports a thousand modules of the compiler (3 s, 160 MB)."""
    package = _package(folder, name, precision)
    fixed = json.loads((package / _FIXED).read_text())
    packed = package / _PACKED
    loader = _loader(packed if packed.exists() else package, torch.device(place))

    def call(*arguments: Tensor) -> Any:
        # Compiled code believes shapes and strides without a look.
        for sizes, argument in zip(fixed, arguments, strict=True):
            if any(size not in (None, found) for size, found in zip(sizes, argument.shape, strict=True)):
                raise ValueError(f"{name} was compiled for {sizes}, not for {list(argument.shape)}")
        outputs = loader.boxed_run([argument.contiguous() for argument in arguments])
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return call
