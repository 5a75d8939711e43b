"""The one way from inputs to results that every inference endpoint takes: find, admit, decode, submit, interpret."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import Request
from msgspec import Struct
from starlette.responses import Response

from app.errors import ClientLeft, HearthError
from app.metrics import tally
from app.pool.base import Model, Pool
from app.settings import Settings
from app.tasks.base import Codec, Decoded

T = TypeVar("T")

_PATIENCE_S = 0.2  # answers that come sooner need no watch over their client's connection


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What every route needs."""

    pool: Pool
    settings: Settings
    decoders: ThreadPoolExecutor
    stopping: Callable[[], bool] = lambda: False
    """Whether this process is told to end: streams end then."""


class Order(Struct, frozen=True, kw_only=True):
    """What one request wants of which model."""

    task: str
    model: str | None
    items: Sequence[bytes | str]
    outputs: tuple[str, ...]
    decode: dict[str, Any]
    interpret: dict[str, Any]
    timeout_ms: int | None


class Served(Struct, frozen=True):
    """The model that answered, what was decoded, and a result or an error per item."""

    model: Model
    decoded: list[Decoded | None]
    results: list[dict[str, Any] | HearthError]


async def serve(request: Request, order: Order) -> Served:
    """Answer all items of a request. One item that fails alone raises; among several its error stands in its place."""
    kitchen: Kitchen = request.app.state.kitchen
    timeout_s = order.timeout_ms / 1000 if order.timeout_ms else kitchen.settings.timeout_s
    deadline = time.monotonic() + timeout_s
    model, codec = kitchen.pool.find(order.model, order.task)
    state = request.scope["state"]  # what Starlette would wrap anew at each look
    state["model"] = model.card.name
    with kitchen.pool.admit(model.card.name, len(order.items), deadline):
        work = [_caught(_one(kitchen, model, codec, order, item, deadline, state["timing"])) for item in order.items]
        with _Watch(request):
            pairs = [await work[0]] if len(work) == 1 else await asyncio.gather(*work)
    results = [result for _, result in pairs]
    if len(results) == 1 and isinstance(results[0], HearthError):
        raise results[0]
    return Served(model, [decoded for decoded, _ in pairs], results)


async def _one(
    kitchen: Kitchen, model: Model, codec: Codec, order: Order, item: bytes | str, deadline: float, timing: dict[str, float]
) -> tuple[Decoded, dict[str, Any]]:
    started = time.monotonic()
    decode = partial(codec.decode, item, **order.decode)
    if codec.light(item):
        decoded = decode()
    else:
        decoded = await asyncio.get_running_loop().run_in_executor(kitchen.decoders, decode)
    _spent(timing, "decode", time.monotonic() - started, model)
    submit = partial(kitchen.pool.submit, model.card.name, outputs=order.outputs, deadline=deadline)
    if len(decoded.samples) == 1:
        answers = [await submit(decoded.samples[0])]
    else:
        answers = await _together([submit(sample) for sample in decoded.samples])
    timing["queue"] = max(timing.get("queue", 0.0), *(answer.queue_s for answer in answers))
    timing["run"] = max(timing.get("run", 0.0), *(answer.run_s for answer in answers))
    started = time.monotonic()
    result = codec.interpret(decoded, [answer.output for answer in answers], **order.interpret)
    _spent(timing, "interpret", time.monotonic() - started, model)
    return decoded, result


async def _together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All or the first error: the other windows of a recording are dropped with it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _caught(
    work: Coroutine[Any, Any, tuple[Decoded, dict[str, Any]]],
) -> tuple[Decoded | None, dict[str, Any] | HearthError]:
    try:
        return await work
    except HearthError as error:
        return None, error


def _spent(timing: dict[str, float], stage: str, seconds: float, model: Model) -> None:
    timing[stage] = timing.get(stage, 0.0) + seconds
    tally().stage(stage, model.card.name, seconds)


class _Watch:
    """Cancels the work in its body when the client closes the connection, so that its samples leave the queue."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientLeft

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._left = True
            self._task.cancel()


def reply(body: dict[str, Any]) -> Response:
    """JSON by orjson; numpy arrays are written as they are."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def trouble(error: HearthError) -> dict[str, str]:
    """One input's error among the results of others."""
    return {"code": error.code, "detail": error.detail}


def per_file(served: Served, names: Sequence[str | None]) -> dict[str, Any]:
    """`model`, `version` and one result per input, which holds an `error` where it failed. `names`: of files that have one."""
    results = [
        ({"file": name} if name is not None else {}) | ({"error": trouble(result)} if isinstance(result, HearthError) else result)
        for name, result in zip(names, served.results, strict=True)
    ]
    return {"model": served.model.card.name, "version": served.model.card.version, "results": results}
