"""What happens to every request, outside of any route: its id, who may do it, the limit on its body, metrics, log,
`Server-Timing`, audit log.

Inference goes from here straight to its endpoint. On the way through FastAPI (six layers of middleware, routing, dependencies,
exit stacks) a request spends 60 µs, as much as everything else that we do for it; and it needs none of that.

While some are refused, a request for texts that is refused, too, does not even get a task (`at_once`): what a flood costs is
taken from those who are answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import count
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.audit import note
from app.errors import HearthError, TooBusy
from app.logs import log, request_id
from app.metrics import tally
from app.pool.base import PAST, is_inherited, is_let_in
from app.settings import Settings
from app.web.intake import Intake, too_large
from app.web.origins import Origins
from app.web.overrun import Overrun
from app.web.problems import LEFT, Problem, from_error, on_error
from app.web.security import Guard
from app.web.sketch import sketch

Endpoint = Callable[[Request], Awaitable[Response]]

_WRITE_S = 0.2
_FLOOD_S = 1.0  # after one that was refused, others probably are
_BORNE = 1 << 16  # bytes of a refused body that are read so that the connection can be used again
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NOTHING_WAS_TRIED = (*range(300, 400), 405)  # the caller is sent elsewhere, or used a method that is none
_COUNTED = ("too_busy", "rate_limited")  # by metrics; a line for each would make an overload worse
_SANE_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")


class Edge:
    """The outermost ASGI layer. `direct`: path → endpoint of what is asked by POST and reads its own query and body."""

    def __init__(
        self,
        app: FastAPI,
        direct: Mapping[str, Endpoint],
        settings: Settings,
        limits: Mapping[str, int] | None = None,
        sketched: Mapping[str, str] | None = None,
    ) -> None:
        """`limits`: paths whose bodies have one of their own, in bytes. `sketched`: those of `sketch.py`, and their tasks."""
        self.guard = Guard(settings, direct)
        self._app = app
        self._direct = direct
        self._home = settings.home
        self._origins = Origins(settings.cors_origins) if settings.cors_origins else None
        self._max_body_bytes = int(settings.max_body_mb * 2**20)
        self._limits = limits or {}
        self._sketched = sketched or {}
        self._intake = Intake(settings.silence_s, int(max(settings.max_bodies_mb, settings.max_body_mb) * 2**20))
        self._overrun = Overrun()
        self._ids = _ids()
        self._refused = -math.inf  # when somebody last was, for want of room or of a rate
        self._writing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        before = request_id.set("")
        refusal = None if "begun" in scope.get("state", ()) else self._begin(scope)
        state = scope["state"]
        request_id.set(state["id"])
        PAST.set(state.get("past"))
        status, over = LEFT, False
        tally().in_flight += 1
        self._write_soon()

        async def sending(message: Message) -> None:
            nonlocal status, over
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_heads(state)]
                if state["audit"] is not None and status not in _NOTHING_WAS_TRIED:
                    await self._audit(scope, status)
            await send(message)
            over = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                await self._answer(scope, self._read(scope, receive), sending)
        except Exception as error:
            if not over:
                raise
            # Starlette raises what on_error has answered once more, and uvicorn would close the connection.
            if "code" not in state and status != LEFT:
                log.error("a mistake of ours, after the answer", exc_info=error)
        finally:
            self._intake.over(state)
            tally().in_flight -= 1
            self._note(scope, status)
            request_id.reset(before)

    def sketches(self, scope: Scope) -> bool:
        """Whether to ask `at_once` when the request is here as a whole: others were refused just now."""
        flooded = time.monotonic() <= self._refused + _FLOOD_S
        return flooded and scope["path"] in self._sketched and scope["method"] == "POST" and not scope["query_string"]

    def at_once(self, scope: Scope, body: bytearray) -> Response | None:
        """The answer to a request that is refused. None: it goes the usual way."""
        if len(body) > self._limit(scope):
            return None
        before = request_id.set("")
        try:
            if (refusal := self._begin(scope) or self._sketch(scope, body)) is not None:
                del refusal.headers["Connection"]  # its body is here
                refusal.raw_headers.extend(_heads(scope["state"]))
                self._write_soon()
                self._note(scope, refusal.status_code)
            return refusal
        except Exception:  # noqa: BLE001  a mistake of ours: the usual way makes it again, and tells
            scope.get("state", {}).pop("begun", None)  # with all that was to be checked
            return None
        finally:
            request_id.reset(before)

    def _sketch(self, scope: Scope, body: bytearray) -> Problem | None:
        if is_let_in(scope["state"].get("past")):
            return None
        try:
            sketch(self._app.state.kitchen, self._sketched[scope["path"]], body, scope["state"])
        except HearthError as error:
            refusal = from_error(error)
            scope["state"]["code"] = refusal.code
            return refusal
        return None

    def _begin(self, scope: Scope) -> Response | None:
        """What is known of a request from its head, and whether it is refused for that."""
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        scope["app"] = self._app
        scope["state"] = {
            **scope.get("state", {}),
            "id": given if given and _SANE_ID.fullmatch(given) else next(self._ids),
            "started": time.monotonic(),
            "until": math.inf,  # when its body must be here, if the caller says so
            "timing": {},
            "model": "",
            "endpoint": scope["path"] if self._endpoint(scope) else "",
            "key": None,
            "heads": self._origins.heads(headers) if self._origins else [],  # of the answer
            "audit": None,  # of a change: what the audit log shall tell of it
            "drawn": "",  # the version that answers, where that is known already
        }
        request_id.set(scope["state"]["id"])
        refusal = self._refusal(scope, headers)
        scope["state"]["begun"] = True
        return refusal

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """What is answered from the head alone; None: the request is to be read."""
        stated, limit = headers.get(b"content-length", b"0"), self._limit(scope)
        size = int(stated.lstrip(b"0")[:20] or b"0") if stated.isdigit() else 0  # int() refuses thousands of digits
        overrun = self._overrun.came()
        if self._origins and (answer := self._origins.preflight(scope, headers)):
            return answer
        try:
            if overrun and self.guard.is_open(scope) and not is_inherited(scope["state"].get("past")):
                raise TooBusy("more is asked than this server can read; come back in 1 s", retry_after_s=1)
            self.guard.check(scope, headers)
            if size > limit:
                raise too_large(limit)
        except HearthError as error:
            refusal = from_error(error)
            scope["state"]["code"] = refusal.code
            if size > _BORNE or b"transfer-encoding" in headers:  # nobody is made to read what is not wanted
                refusal.headers["Connection"] = "close"
            return refusal
        return None

    async def _audit(self, scope: Scope, status: int) -> None:
        """Before the caller hears of it."""
        state, client = scope["state"], scope.get("client")
        outcome = state.get("code") or ("done" if status < 300 else "refused")
        key, address = state["key"], client[0] if client else ""
        what = f"{scope['method']} {scope['path'][:200]}"
        more = {"status": status, **state["audit"]}
        await asyncio.to_thread(note, self._home, what, outcome, key=key.id if key else "", address=address, **more)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoint(scope)
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:  # noqa: BLE001  on_error knows an answer to everything, and logs what it did not expect
            response = await on_error(request, error)
        await response(scope, receive, send)

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        return self._direct.get(scope["path"]) if scope["method"] == "POST" else None

    def _read(self, scope: Scope, receive: Receive) -> Receive:
        state, client = scope["state"], scope.get("client")
        sender = state["key"].id if state["key"] else client[0] if client else ""
        kept = self._endpoint(scope) is not None and not is_let_in(state.get("past"))
        return self._intake.reading(receive, self._limit(scope), state, sender=sender, kept=kept)

    def _write_soon(self) -> None:
        """Metrics go to the shared files a few times a second, while there is anything to write."""
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_later(_WRITE_S, self._write)

    def _write(self) -> None:
        self._writing = False
        tally().flush()
        if tally().in_flight:
            self._write_soon()

    def _limit(self, scope: Scope) -> int:
        return self._limits.get(scope["path"], self._max_body_bytes)

    def _note(self, scope: Scope, status: int) -> None:
        state, now = scope["state"], time.monotonic()
        seconds = now - state["started"]
        endpoint = state["endpoint"] or getattr(scope.get("route"), "path", "other")
        tally().request(endpoint, state["model"], status, seconds, state.get("code", ""))
        counted = state.get("code") in _COUNTED
        if counted:
            self._refused = now
        told = status >= 400 and not counted
        level = logging.INFO if told else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, "%s %s %d %.1f ms", scope["method"], scope["path"], status, seconds * 1000)


def _ids() -> Iterator[str]:
    """Unique among processes and restarts; random bytes for each one would cost a call to the kernel."""
    start = secrets.token_hex(12)
    return (f"{start}{n:08x}" for n in count())


def _heads(state: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """What every answer says."""
    return [(b"x-request-id", state["id"].encode()), _NO_SNIFFING, *_timing(state["timing"]), *state["heads"]]


def _timing(stages: dict[str, float]) -> list[tuple[bytes, Any]]:
    """W3C Server-Timing, in milliseconds."""
    if not stages:
        return []
    return [(b"server-timing", ", ".join(f"{stage};dur={1000 * s:.2f}" for stage, s in stages.items()).encode())]
