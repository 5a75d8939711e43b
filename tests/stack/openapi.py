"""Answers against the server's own OpenAPI: status, content type and body of whatever a test of the stack asks for."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from typing import Any, cast

import httpx

_STREAM = "text/event-stream"  # its reader reads it, line by line


@cache
def operations() -> list[tuple[str, re.Pattern[str], Any]]:
    """What is documented: verb, paths, operation. The first time takes a second."""
    import schemathesis

    from app.settings import Settings
    from app.web.server import make_app

    schema = schemathesis.openapi.from_dict(make_app(cast(Any, None), Settings())._app.openapi())  # type: ignore[attr-defined]
    found = [result.ok() for result in schema.get_all_operations()]
    return [(one.method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", one.path)), one) for one in found]


def fits(response: httpx.Response) -> None:
    """A hook of httpx's clients. Raises AssertionError, or schemathesis' FailureGroup, for what is not documented."""
    verb, path = response.request.method, response.request.url.path
    operation = next((one for method, paths, one in operations() if method == verb and paths.fullmatch(path)), None)
    if operation is None:
        return
    media = response.headers.get("content-type", "").partition(";")[0]
    documented = operation.definition.raw["responses"].get(str(response.status_code))
    assert documented is not None, f"{verb} {path} answers {response.status_code}, which is not documented"
    medias = set(documented.get("content", {}))
    assert media in medias or not (medias or media), f"{verb} {path} answers {response.status_code} with {media}, not {medias}"
    if media != _STREAM:
        told = httpx.Response(response.status_code, headers={"content-type": media}, content=response.read())
        told.request, told.elapsed = httpx.Request(verb, response.request.url), timedelta()
        operation.validate_response(told)
