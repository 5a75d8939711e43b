"""Error code → status and problem+json (RFC 9457). The only table of statuses."""

from __future__ import annotations

import math
import os
from typing import Any

import orjson
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.errors import ClientLeft, HearthError, RequestTimeout, Unauthorised
from app.logs import log, request_id
from app.patience import is_scarce, too_little

STATUS: dict[str, tuple[int, str]] = {
    "bad_input": (400, "The input cannot be read"),
    "unauthorised": (401, "A key is needed"),
    "forbidden": (403, "Not allowed"),
    "unknown_model": (404, "No such model"),
    "unknown_job": (404, "No such job"),
    "not_found": (404, "No such address"),
    "method_not_allowed": (405, "Wrong method"),
    "request_timeout": (408, "The request did not come in time"),
    "conflict": (409, "The model's task or state does not allow this"),
    "too_large": (413, "A limit is exceeded"),
    "unsupported_media": (415, "This kind of file is not read here"),
    "invalid": (422, "A field is wrong"),
    "rate_limited": (429, "Too much at once"),
    "too_busy": (503, "There is no room for this now"),
    "loading": (503, "The model is not loaded"),
    "unavailable": (503, "The database of jobs is away"),
    "deadline": (504, "The deadline passed"),
    "model_failed": (500, "The model failed"),
    "poisoned": (500, "This input ends the process that runs it"),
    "worker_lost": (503, "The worker is gone"),
    "out_of_memory": (507, "Not enough memory for this input"),
    "internal": (500, "A mistake of ours"),
}
MEDIA_TYPE = "application/problem+json"
LEFT = 499  # nginx's status for a client that left: nobody reads it but the log and the metrics


class Problem(Response):
    """An error's answer, which remembers its code for the metrics."""

    code: str


def problem(code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> Problem:
    """The answer for one error."""
    status, title = STATUS[code]
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id.get(),
    }
    response = Problem(orjson.dumps(body | more), status, headers, MEDIA_TYPE)
    response.code = code
    return response


def from_error(error: HearthError) -> Problem:
    """The answer for an expected failure, with `Retry-After` where one is known."""
    headers = {"Retry-After": str(math.ceil(error.retry_after_s))} if error.retry_after_s is not None else {}
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = 'Bearer realm="hearth"'
    return problem(error.code, error.detail, headers=headers)


async def on_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for everything that can be raised."""
    if isinstance(error, ClientLeft | ClientDisconnect):  # while we worked, or while it was still sending
        return Response(status_code=LEFT)
    response = _respond(error)
    request.state.code = response.code
    return response


def _respond(error: Exception) -> Problem:
    if isinstance(error, HearthError):
        return from_error(error)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_input")
        detail = {
            "not_found": "nothing answers at this address; see /docs",
            "method_not_allowed": "use the method that /docs shows",
        }
        return problem(code, detail.get(code, str(error.detail)), headers=dict(error.headers or {}))
    if is_scarce(error):
        log.error("there is too little to do this: %s", error)
        return from_error(too_little(os.strerror(error.errno or 0)))
    log.error("a mistake of ours", exc_info=error)
    return problem("internal", "the server made a mistake; report it with this request_id")
