"""Says what a database that is away and a disk that takes nothing more mean for a caller. Knows no job."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from app.errors import HearthError, TooLarge, Unavailable
from app.logs import log
from app.tuning.room import is_full, is_read_only

_AGAIN_S = 5.0
_AWAY = ("OperationalError", "InterfaceError", "TimeoutError")  # by name: 15 MB are imported by those who have jobs alone


class InPlainWords(APIRoute):
    """A route that needs the disk and the database."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, and what its errors mean."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                sent = request.headers.get("content-type", "").startswith("multipart/")
                if (meant := in_plain_words(error, sent=sent)) is None:
                    raise
                log.error("jobs cannot be kept for now: %s", error)
                raise meant from error

        return handler


def in_plain_words(error: Exception, *, sent: bool = False) -> HearthError | None:
    """What a caller is told, or None if it is neither. `sent`: the caller has sent data, with which the disk became full."""
    if isinstance(error, HearthError):
        return None
    if is_full(error):
        if sent:
            return TooLarge("the server's disk is full; make room in HEARTH_HOME, or send less")
        return Unavailable("the server's disk is full; make room in HEARTH_HOME, then ask again", retry_after_s=_AGAIN_S)
    if is_read_only(error):
        return Unavailable("the server's disk is read-only; make HEARTH_HOME writable, then ask again", retry_after_s=_AGAIN_S)
    kind = type(error)
    if kind.__module__ == "sqlalchemy.exc" and kind.__name__ in _AWAY:
        return Unavailable("the database of jobs is away (HEARTH_DATABASE); ask again", retry_after_s=_AGAIN_S)
    return None
