"""What those hear who load a model."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from app.pool.base import Model
from tests.unit.web.conftest import ToyPool


@pytest.mark.parametrize(("why", "status"), [("no memory; it is tried again", 503), ("", 200)], ids=["in doubt", "replaced"])
async def test_a_model_of_which_nobody_knows_whether_it_will_be_ready_is_not_loaded(
    client: httpx.AsyncClient, pool: ToyPool, monkeypatch: pytest.MonkeyPatch, why: str, status: int
):
    async def change(*_: str) -> Model:
        return replace(pool._model(), state="loading", why=why)

    monkeypatch.setattr(pool, "change", change)
    answer = await client.post("/models/toy/load")
    assert answer.status_code == status
    if why:
        assert answer.json()["code"] == "loading" and why in answer.json()["detail"] and answer.headers["retry-after"]
