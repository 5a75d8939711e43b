"""What those hear who load a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.pool.base import Model
from tests.unit.web.conftest import ToyPool


async def test_a_model_of_which_nobody_knows_whether_it_will_be_ready_is_not_loaded(
    client: httpx.AsyncClient, pool: ToyPool, monkeypatch: pytest.MonkeyPatch
):
    async def change(*_: str) -> Model:
        return replace(pool._model(), state="loading", why="no memory; it is tried again")

    monkeypatch.setattr(pool, "change", change)
    answer = await client.post("/models/toy/load")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json()["code"] == "loading" and "no memory" in answer.json()["detail"]


async def test_who_loads_a_model_that_another_caller_loads_anew_hears_when_that_is_done(
    client: httpx.AsyncClient, pool: ToyPool, monkeypatch: pytest.MonkeyPatch
):
    states = ["loading", "loading", "ready"]

    async def change(name: str, what: str) -> Model:
        assert (name, what) == ("toy", "load")
        return replace(pool._model(), state=states.pop(0))

    monkeypatch.setattr(pool, "change", change)
    answer = await client.post("/models/toy/load")
    assert (answer.status_code, answer.json()["state"], states) == (200, "ready", [])


async def test_but_not_for_ever(client: httpx.AsyncClient, pool: ToyPool, monkeypatch: pytest.MonkeyPatch):
    async def change(*_: str) -> Model:
        return replace(pool._model(), state="loading")

    monkeypatch.setattr(pool, "change", change)
    answer = await client.post("/models/toy/load")
    assert answer.status_code == 503 and "others load and unload it" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/models", "/models/toy"])
async def test_memory_is_counted_for_those_alone_who_are_shown_it(app: Any, pool: ToyPool, path: str):
    """It takes ten milliseconds of each worker, in which nobody else is heard."""
    for address in ("127.0.0.1", "10.1.2.3"):
        transport = httpx.ASGITransport(app, client=(address, 9))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get(path)).status_code == 200
    assert pool.told_memory == [True, False]
