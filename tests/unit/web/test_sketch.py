"""What is refused at once, in a flood: the same answer as on the usual way, and nothing that would have been let in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import given, reject, strategies as st
from starlette.responses import Response

from app import keys
from app.decoding.client import Threads
from app.errors import HearthError, TooBusy, Unauthorised
from app.settings import Settings
from app.web import edge
from app.web.edge import Edge
from app.web.kitchen import Kitchen
from app.web.read import read_json, texts
from app.web.schemas import EmbedText
from app.web.server import make_app
from app.web.sketch import sketch
from tests.unit.web.conftest import ToyPool
from tests.unit.web.test_edge import scope

TEXT: dict[str, Any] = {"inputs": "a text", "model": "toy", "timeout_ms": 2000}
FULL = TooBusy("toy: full; come back in 3 s", retry_after_s=2.4)


def at_once(app: Edge, body: Any = TEXT, path: str = "/embed/text", heads: dict[str, str] | None = None, **more: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = [(name.encode(), value.encode()) for name, value in ({"content-type": "application/json"} | (heads or {})).items()]
    asked = scope(path, [*headers, (b"content-length", b"%d" % len(raw))]) | more
    return app.at_once(asked, bytearray(raw)) if app.sketches(asked) else None


@pytest.fixture
async def flood(app: Edge, pool: Any, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """A refusal, after which others are looked at at once, however slow this machine is; the queue is still full."""
    monkeypatch.setattr(edge, "_FLOOD_S", 1e9)
    pool.refusal = FULL
    return await client.post("/embed/text", json=TEXT)


async def test_nothing_is_looked_at_twice_while_nobody_is_refused(app: Edge, pool: Any, client: httpx.AsyncClient):
    pool.refusal = FULL
    assert not app.sketches(scope("/embed/text"))
    await client.post("/embed/text", json=TEXT)
    app._refused -= 2 * edge._FLOOD_S
    assert not app.sketches(scope("/embed/text"))


@pytest.mark.parametrize("path", ["/embed/text", "/predict/text"])
async def test_a_refusal_is_that_of_the_usual_way(app: Edge, flood: httpx.Response, path: str):
    refusal: Response = at_once(app, path=path, heads={"x-request-id": "mine"})
    assert refusal.status_code == flood.status_code == 503
    told, usual = json.loads(refusal.body), flood.json()
    assert told == usual | {"request_id": "mine"}
    heads = {name.decode(): value.decode() for name, value in refusal.raw_headers}
    same = {name: value for name, value in flood.headers.items() if name not in ("x-request-id", "content-length")}
    assert heads == same | {"x-request-id": "mine", "content-length": str(len(refusal.body))}


async def test_what_there_is_room_for_goes_the_usual_way(app: Edge, pool: Any, flood: httpx.Response):
    pool.refusal = None
    assert at_once(app) is None
    pool.refusal = FULL
    assert at_once(app) is not None


@pytest.mark.parametrize(
    "asked",
    [
        {"body": b"{"},
        {"body": b'{"inputs": "\xff"}'},
        {"body": b""},
        {"body": b'{"inputs": "a", "x": ' + b"[" * 50_000},
        {"body": {"inputs": 1}},
        {"body": {"inputs": []}},
        {"body": {"inputs": ["a"] * 5}},
        {"body": {"inputs": "a", "timeout_ms": 0}},
        {"body": TEXT | {"inputs": "a" * 300_000}},
        {"query_string": b"model=toy"},
        {"method": "GET"},
        {"path": "/predict/image"},
        {"path": "/models"},
        {"path": "/health/live"},
    ],
    ids=str,
)
async def test_what_cannot_be_told_at_a_glance_goes_the_usual_way(app: Edge, flood: httpx.Response, asked: dict[str, Any]):
    assert at_once(app, **asked) is None
    assert at_once(app) is not None, "others are refused"


@pytest.mark.parametrize(
    "body", [b"{", b'{"inputs": "\xff"}', b'{"inputs": "a", "x": ' + b"[" * 50_000], ids=["cut", "letters", "deep"]
)
def test_a_body_that_is_none_is_not_sketched(pool: Any, body: bytes):
    sketch(Kitchen(pool, Settings(), Threads(1)), "text-embedding", bytearray(body), {})


_TEXT = st.text(max_size=5)
_VALUES = {
    "inputs": st.one_of(_TEXT, st.lists(_TEXT, max_size=6)),
    "model": st.one_of(_TEXT, st.none()),
    "timeout_ms": st.one_of(st.integers(0, 5), st.none(), st.floats(0, 5)),
    "normalize": st.booleans(),
}
_PAIRS = st.sampled_from(sorted(_VALUES)).flatmap(lambda name: _VALUES[name].map(lambda value: (name, value)))


@given(pairs=st.lists(_PAIRS, min_size=1, max_size=6), plain=st.booleans())
async def test_a_sketch_sees_in_a_body_what_the_usual_way_sees(pairs: list[tuple[str, Any]], plain: bool):
    """Also where a field stands twice."""
    pool, fields = _Asked(), [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=plain)}" for name, value in pairs]
    raw = ("{" + ", ".join(fields) + "}").encode("utf-8", "replace")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    try:
        body = await read_json(Request(scope("/embed/text", [(b"content-type", b"application/json")]), receive), EmbedText)
        items = texts(body.inputs, 4)
    except HearthError:
        reject()
    sketch(Kitchen(pool, Settings(max_inputs=4, timeout_s=30), Threads(1)), "text-embedding", bytearray(raw), {"key": None})
    if not pool.inputs:  # a field that stands twice was wrong the first time
        assert len(dict(pairs)) < len(pairs)
        return
    assert (pool.model, pool.inputs) == (body.model, len(items))
    allowed_s = body.timeout_ms / 1000 if body.timeout_ms else 30
    assert allowed_s - 1 < pool.deadline - time.monotonic() <= allowed_s


class _Asked(ToyPool):
    """It has room for everything, and remembers what it was asked for."""

    inputs = 0

    def find(self, name: str | None, task: str, **_: Any) -> Any:
        self.model = name
        return super().find(None, task)

    @contextmanager
    def admit(self, model: str, inputs: int, deadline: float, key: Any = None) -> Iterator[None]:
        self.inputs, self.deadline = inputs, deadline
        yield


async def test_an_unknown_model_is_told_at_once_too(app: Edge, flood: httpx.Response):
    assert at_once(app, TEXT | {"model": "../.."}).status_code == 404


async def test_it_is_counted_as_any_other(app: Edge, pool: Any, flood: httpx.Response, client: httpx.AsyncClient):
    async def refused() -> tuple[float, ...]:
        lines = [line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines()]
        wanted = ("hearth_requests_total", "hearth_errors_total", "hearth_request_seconds_count")
        return tuple(
            sum(float(value) for name, value in lines if name.startswith(one) and "/embed/text" in name and '"2' not in name)
            for one in wanted
        )

    before = await refused()
    for _ in range(3):
        assert at_once(app) is not None
    assert [after - old for old, after in zip(before, await refused(), strict=True)] == [3, 3, 3]


async def test_a_mistake_of_ours_is_left_to_the_usual_way_and_lets_nobody_around_the_guard(
    app: Edge, pool: Any, flood: httpx.Response, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    asked = scope("/embed/text")
    with monkeypatch.context() as patch:
        patch.setattr(app.guard, "check", broken)
        assert app.at_once(asked, bytearray(json.dumps(TEXT).encode())) is None
        with pytest.raises(RuntimeError):
            await app(asked, *[None] * 2)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(pool, "admit", broken)
        assert at_once(app) is None

    def refusing(*_: Any) -> None:
        raise Unauthorised("no key")

    monkeypatch.setattr(app.guard, "check", refusing)
    with monkeypatch.context() as patch:
        patch.setattr(app, "_note", broken)
        assert app.at_once(asked, bytearray(json.dumps(TEXT).encode())) is None
    assert await answered(app, asked, json.dumps(TEXT).encode()) == 401


async def test_the_version_that_was_drawn_for_it_is_the_one_that_answers(
    app: Edge, pool: Any, flood: httpx.Response, monkeypatch: pytest.MonkeyPatch
):
    pool.refusal, found, find = None, list[Any](), pool.find

    def finding(name: str | None, task: str, *, exactly: bool = False) -> Any:
        found.append((name, exactly))
        return find(name, task)

    monkeypatch.setattr(pool, "find", finding)
    asked, body = scope("/embed/text", [(b"content-type", b"application/json")]), json.dumps({"inputs": "a"}).encode()
    assert app.at_once(asked, bytearray(body)) is None
    assert await answered(app, asked, body) == 200
    assert found == [(None, False), ("toy", True)]


async def answered(app: Edge, asked: dict[str, Any], body: bytes) -> int:
    """The status on the usual way."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(asked, receive, send)
    return int(sent[0]["status"])


async def test_keys_are_asked_for_first_and_a_rate_is_spent_once(pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edge, "_FLOOD_S", 1e9)
    file = tmp_path / "keys"
    _, secret = keys.add(file, "someone", "infer", rate="3/h")
    app = make_app(pool, Settings(home=tmp_path, keys_file=str(file), frontends=1))
    app.guard.take(file.read_text())
    mine = {"authorization": f"Bearer {secret}"}
    pool.refusal = FULL
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=mine) as client:
        assert (await client.post("/embed/text", json=TEXT)).status_code == 503
    assert at_once(app).status_code == 401
    refusal = at_once(app, heads=mine)
    assert refusal.status_code == 503 and (b"ratelimit", b'"key";r=1;t=') in [(n, v[:12]) for n, v in refusal.raw_headers]
    pool.refusal = None
    asked = scope("/embed/text", [(b"authorization", mine["authorization"].encode())])
    body = json.dumps(TEXT).encode()
    assert app.at_once(asked, bytearray(body)) is None
    assert await answered(app, asked, body) == 200, "the third of three, though it was looked at twice"
    limited = at_once(app, heads=mine | {"transfer-encoding": "chunked"})
    assert limited.status_code == 429 and "connection" not in limited.headers, "all of it was read"
