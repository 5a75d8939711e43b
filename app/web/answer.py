"""The one way from a request to its answer that every inference endpoint takes: find, admit, then the kitchen, then JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import Request
from msgspec import Struct
from starlette.responses import Response

from app.errors import ClientLeft, Deadline, HearthError
from app.patience import PAUSE_S, patiently
from app.pool.base import PAST, Coming, Model, Renewed
from app.tasks.base import Codec, Decoded
from app.web.kitchen import Kitchen, Order, answers
from app.web.shadow import cast

_PATIENCE_S = 0.2  # answers that come sooner need no watch over their client's connection


class Served(Struct, frozen=True):
    """The model that answered, what was decoded, and a result or an error per item."""

    model: Model
    decoded: list[Decoded | None]
    results: list[dict[str, Any] | HearthError]


async def serve(request: Request, order: Order) -> Served:
    """Answer all items of a request. One item that fails alone raises; among several its error stands in its place."""
    kitchen: Kitchen = request.app.state.kitchen
    state = request.scope["state"]  # what Starlette would wrap anew at each look
    now = time.monotonic()
    # A caller's own deadline is for everything; ours begins when all is here, because an upload takes as long as its line wants.
    deadline = state["started"] + order.timeout_ms / 1000 if order.timeout_ms else now + kitchen.settings.timeout_s
    if now > deadline:
        raise Deadline("the request was not here before its deadline; allow more time with timeout_ms, or send less")
    drawn = state["drawn"]
    find = partial(kitchen.pool.find, drawn or order.model, order.task, exactly=bool(drawn))
    found: tuple[Model, Codec] | None
    try:
        found = await patiently(find, deadline)  # it may have to read the model's files
        name = found[0].card.name
    except Coming as coming:  # he was let in before
        found, name = None, coming.model
    state["model"], shadow = name, kitchen.pool.shadow(name)  # it may be gone when all is answered
    with kitchen.pool.admit(name, len(order.items), deadline, state["key"]), _Watch(request) as watch:
        while True:
            model, codec = found or await _awaited(
                partial(kitchen.pool.find, name, order.task, exactly=True, again=True), deadline
            )
            try:
                pairs = await answers(kitchen, model, codec, order, deadline, state["timing"])
                break
            except Renewed:
                watch.check()
                found = None
            if past := PAST.get():
                past.again()
    results = [result for _, result in pairs]
    if shadow:
        cast(kitchen, shadow, order, results)
    if len(results) == 1 and isinstance(error := results[0], HearthError):
        try:
            raise error
        finally:
            del error, results, pairs  # they hold it, and it holds this frame
    return Served(model, [decoded for decoded, _ in pairs], results)


async def _awaited(find: Callable[[], tuple[Model, Codec]], deadline: float) -> tuple[Model, Codec]:
    """The model and its codec, of which there may be none before its next worker is ready."""
    while True:
        try:
            return await patiently(find, deadline)
        except Coming as error:
            if time.monotonic() + PAUSE_S > deadline:
                raise Deadline(f"{error.detail}, nor will it be before the deadline; allow more time with timeout_ms") from error
        await asyncio.sleep(PAUSE_S)


class _Watch:
    """Cancels the work in its body when the client closes the connection, so that its samples leave the queue."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> _Watch:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)
        return self

    def check(self) -> None:
        """After an error, which may have come in the place of a cancellation (`asyncio.gather`)."""
        if self._task and self._task.cancelling():
            raise asyncio.CancelledError

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # they hold each other, and a request of megabytes: all would wait for the garbage collector
        if self._left and task is not None and kind is asyncio.CancelledError:
            task.uncancel()
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
    return {"model": served.model.card.model, "version": served.model.card.version, "results": results}
