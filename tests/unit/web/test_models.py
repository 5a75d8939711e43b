"""What those hear who load a model."""

from __future__ import annotations

import httpx
import pytest

from app.pool.base import Model
from tests.unit.web.conftest import ToyPool


async def test_a_model_of_which_nobody_knows_whether_it_will_be_ready_is_not_loaded(
    client: httpx.AsyncClient, pool: ToyPool, monkeypatch: pytest.MonkeyPatch
):
    async def doubt(*_: str) -> Model:
        pool.state = "loading"
        return pool._model()

    monkeypatch.setattr(pool, "change", doubt)
    answer = await client.post("/models/toy/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "loading")
    assert answer.headers["retry-after"]
