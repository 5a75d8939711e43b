"""Versions that run along: copies of requests are answered by them too, after their callers have left, and only compared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.errors import HearthError
from app.metrics import tally
from app.patience import patiently
from app.pool.base import PAST, Renewed
from app.tasks.base import unit
from app.web.kitchen import Kitchen, Order, answers

_MOST = 8  # copies at once in one frontend; beyond them a request is not copied
_COSINE = 0.99


def cast(kitchen: Kitchen, shadow: str, order: Order, results: Sequence[dict[str, Any] | HearthError]) -> None:
    """Have `shadow` answer a copy, unless it has enough to do. What it says is counted in `hearth_shadow_total`."""
    if len(kitchen.shadows) >= _MOST:
        tally().shadow(shadow, "skipped")
        return
    task = asyncio.create_task(_compare(kitchen, shadow, order, results))
    kitchen.shadows.add(task)
    task.add_done_callback(kitchen.shadows.discard)


async def _compare(kitchen: Kitchen, shadow: str, order: Order, results: Sequence[dict[str, Any] | HearthError]) -> None:
    deadline = time.monotonic() + kitchen.settings.timeout_s
    PAST.set(None)  # the request is answered, and its connection may have the next one
    try:
        model, codec = await patiently(lambda: kitchen.pool.find(shadow, order.task, exactly=True))
        with kitchen.pool.admit(shadow, len(order.items), deadline):
            pairs = await answers(kitchen, model, codec, order, deadline, {})
    except HearthError as error:
        tally().shadow(shadow, "skipped" if isinstance(error, Renewed) else "failed")
        return
    for live, (_, copy) in zip(results, pairs, strict=True):
        if isinstance(live, HearthError):
            continue
        tally().shadow(shadow, "failed" if isinstance(copy, HearthError) else "agreed" if agree(live, copy) else "differed")


def agree(live: dict[str, Any], copy: dict[str, Any]) -> bool:
    """Whether two answers mean the same: the best label, the text, the direction of the embedding."""
    if "predictions" in live:
        return bool(live["predictions"][0]["label"] == copy["predictions"][0]["label"])
    if "embedding" in live:
        one, other = np.asarray(live["embedding"]), np.asarray(copy["embedding"])
        return one.shape == other.shape and float(unit(one) @ unit(other)) >= _COSINE
    return bool(live["text"] == copy["text"])
