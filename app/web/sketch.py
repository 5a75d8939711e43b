"""Whether a request would be let in, from as little of it as can be: what is refused in a flood is not worth a closer look."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec

from app.errors import HearthError
from app.web.kitchen import Kitchen


class Asked(msgspec.Struct):
    """How much a body of JSON asks of whom. What else stands in it, and whether that is right, shows the usual way."""

    inputs: str | list[str]
    model: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] | None = None


_decode = msgspec.json.Decoder(Asked).decode


def sketch(kitchen: Kitchen, task: str, body: bytearray, state: dict[str, Any]) -> None:
    """Returns if there is room for it, or if it is no such body. Raises what `Pool.find` and `Pool.admit` raise.

    Of a model whose traffic versions share, the version that was drawn answers (`state["drawn"]`): drawn anew, a request would
    need room in both.
    """
    try:
        asked = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    settings = kitchen.settings
    inputs = 1 if isinstance(asked.inputs, str) else len(asked.inputs)
    if not 1 <= inputs <= settings.max_inputs:
        return
    allowed_s = asked.timeout_ms / 1000 if asked.timeout_ms else settings.timeout_s
    model, _ = kitchen.pool.find(asked.model, task)
    drawn = model.card.name
    try:
        with kitchen.pool.admit(drawn, inputs, time.monotonic() + allowed_s, state["key"]):
            state["drawn"] = drawn
    except HearthError:
        state["model"] = drawn
        raise
