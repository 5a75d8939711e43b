"""What happens to every request, outside of any route: its id, the limit on its body, metrics, log, `Server-Timing`."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooLarge
from app.logs import log, request_id
from app.metrics import families
from app.web.problems import LEFT, from_error

_SANE_ID = re.compile(r"^[\w.:/+=-]{1,128}$")


class Edge:
    """The outermost ASGI layer."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if _SANE_ID.match(given) else uuid.uuid4().hex
        token = request_id.set(id)
        scope["state"] = {**scope.get("state", {}), "timing": {}, "model": ""}
        status = LEFT

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", id.encode()),
                    *_timing(scope["state"]["timing"]),
                ]
            await send(message)

        families().in_flight.inc()
        try:
            if (stated := headers.get(b"content-length", b"0")).isdigit() and int(stated) > self._max_body_bytes:
                response = from_error(self._too_large())
                response.headers["Connection"] = "close"
                await response(scope, receive, sending)
            else:
                await self._app(scope, self._counting(receive), sending)
        finally:
            self._note(scope, status, time.monotonic() - started)
            request_id.reset(token)

    def _counting(self, receive: Receive) -> Receive:
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> TooLarge:
        limit = self._max_body_bytes / 2**20
        return TooLarge(f"the body is larger than {limit:g} MiB, the limit; send less at once (HEARTH_MAX_BODY_MB sets it)")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", "other")
        families().in_flight.dec()
        families().requests.labels(endpoint, scope["state"]["model"], str(status)).inc()
        families().request.labels(endpoint).observe(seconds)
        if code := scope["state"].get("code"):
            families().errors.labels(endpoint, code).inc()
        level = logging.DEBUG if scope["method"] == "GET" else logging.INFO  # probes and scrapes come every second
        log.log(level, "%s %s %d %.1f ms", scope["method"], scope["path"], status, seconds * 1000)


def _timing(stages: dict[str, float]) -> list[tuple[bytes, Any]]:
    """W3C Server-Timing, in milliseconds."""
    if not stages:
        return []
    return [(b"server-timing", ", ".join(f"{stage};dur={1000 * s:.2f}" for stage, s in stages.items()).encode())]
