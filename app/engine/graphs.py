"""CUDA graphs of a network, one for each bucket of shapes: what hundreds of small launches cost the CPU is paid once.

Arguments are padded up to their bucket and copied into the graph's own inputs; the answer's real part is copied out. A bucket
that comes twice gets a graph, which stays if it says the same as the plain call and measures faster. Never used on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.compute import Compute
from app.logs import log

_MOST = 64  # buckets remembered; the one that was not used for longest is forgotten
_CAPTURES = 256  # in a process's life: each holds up service for some ten forwards
_COSINE = 0.999  # as engine/choosing.py asks

Bucket = tuple[tuple[int, ...], ...]
Outputs = tuple[Tensor, ...]


class Device(Protocol):
    """What a GPU can do."""

    def capture(self, network: Callable[..., Any], inputs: Outputs) -> tuple[Any, Callable[[], None]]:
        """What `network(*inputs)` gives, in tensors that each call of the second value fills anew. May raise anything."""
        ...

    def seconds(self, call: Callable[[], Any]) -> float:
        """How long `call` and what it launches take."""
        ...


class Cuda:
    """The present GPU. All graphs share one pool of memory: they run one after the other, and answers are copied out at once."""

    def __init__(self) -> None:
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, network: Callable[..., Any], inputs: Outputs) -> tuple[Any, Callable[[], None]]:
        """Warms up on a side stream, as PyTorch's notes ask. A network that waits for the device is refused there."""
        present = torch.cuda.current_stream()
        self._side.wait_stream(present)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._side):
                network(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(before)
            present.wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            outputs = network(*inputs)
        return outputs, graph.replay

    def seconds(self, call: Callable[[], Any]) -> float:
        """The best of three."""
        best = float("inf")
        for _ in range(3):
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return best


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: Outputs
    outputs: Any
    replay: Callable[[], None]


class Graphs:
    """A network that answers by graphs where they are faster. The first dimension of every argument and answer is rows, which do
    not see each other. Where the network says `paddings`, one number per argument, the second dimension may be padded with them.
    """

    def __init__(self, network: Callable[..., Any], most_rows: int, device: Device) -> None:
        self.measured: dict[str, dict[str, float]] = {}
        self._network = network
        self._most_rows = most_rows
        self._device = device
        self._paddings: tuple[int, ...] | None = getattr(network, "paddings", None)
        self._known: dict[Bucket, _Graph | Literal["seen", "plain"]] = {}  # the one used last stands last
        self._captures = _CAPTURES

    def __call__(self, *arguments: Tensor) -> Any:
        """What the network gives."""
        bucket = tuple(self._bucket(tuple(argument.shape)) for argument in arguments)
        known = self._known.pop(bucket, None)
        if known == "seen" and self._captures:
            known = self._try(bucket, arguments)
        self._known[bucket] = known or "seen"
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        return self._replayed(known, arguments) if isinstance(known, _Graph) else self._network(*arguments)

    def _bucket(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, *rest = shape
        if self._paddings is not None:
            rest[0] = padded_length(rest[0])
        return padded_rows(rows, self._most_rows), *rest

    def _try(self, bucket: Bucket, arguments: Outputs) -> _Graph | Literal["plain"]:
        self._captures -= 1
        try:
            inputs = tuple(argument.new_zeros(shape) for argument, shape in zip(arguments, bucket, strict=True))
            graph = _Graph(inputs, *self._device.capture(self._network, inputs))
            if not _same(self._network(*arguments), self._replayed(graph, arguments)):
                log.warning("a CUDA graph of %s says something else than the plain call; it is not used", bucket)
                return "plain"
            plain_s = self._device.seconds(lambda: self._network(*arguments))
            graph_s = self._device.seconds(lambda: self._replayed(graph, arguments))
        except Exception as error:  # noqa: BLE001  whatever hinders a graph, the plain call does without
            log.info("no CUDA graphs: %s: %s", type(error).__name__, str(error)[:200])
            self._captures = 0
            return "plain"
        times = {"plain_ms": round(1000 * plain_s, 3), "graph_ms": round(1000 * graph_s, 3)}
        self.measured["x".join(map(str, bucket[0]))] = times
        return graph if graph_s < plain_s else "plain"

    def _replayed(self, graph: _Graph, arguments: Outputs) -> Any:
        paddings = self._paddings or (0,) * len(arguments)
        for into, argument, padding in zip(graph.inputs, arguments, paddings, strict=True):
            if into.shape != argument.shape:
                into.fill_(padding)
            into[tuple(map(slice, argument.shape))].copy_(argument)
        graph.replay()
        real = tuple(map(slice, arguments[0].shape[: 1 if self._paddings is None else 2]))
        found = tuple(output[real].clone() for output in _tuple(graph.outputs))
        return found if isinstance(graph.outputs, tuple) else found[0]


def padded_rows(rows: int, most: int) -> int:
    """The next power of two up to 8, then the next multiple of 8, but never above `most` for padding's sake."""
    padded = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
    return max(rows, min(padded, most))


def padded_length(length: int) -> int:
    """The next multiple of 16, above 128 of 32."""
    step = 16 if length <= 128 else 32
    return -(-length // step) * step


def graphed(compute: Compute, most_rows: int) -> Compute:
    """`compute` with a network's graphs before each network."""
    device = Cuda()
    return replace(compute, networks={name: Graphs(network, most_rows, device) for name, network in compute.networks.items()})


def measured(compute: Compute) -> dict[str, dict[str, float]]:
    """What the graphs were kept or dropped for so far: network and first argument's bucket → milliseconds of both calls."""
    return {
        f"{name} {shape}": times
        for name, network in compute.networks.items()
        if isinstance(network, Graphs)
        for shape, times in network.measured.items()
    }


def _same(plain: Any, graph: Any) -> bool:
    pairs = zip(_tuple(plain), _tuple(graph), strict=True)
    return all(float(functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0)) > _COSINE for a, b in pairs)


def _tuple(outputs: Any) -> Outputs:
    return outputs if isinstance(outputs, tuple) else (outputs,)
