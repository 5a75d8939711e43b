"""Around the routes: ids, chunked bodies, clients that leave, health, models, metrics, documentation."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Any

import pytest
from fastapi import Request
from prometheus_client.parser import text_string_to_metric_families

from app.errors import Deadline, TooBusy
from app.pool.base import Renewed
from app.settings import Settings
from app.web import answer
from app.web.kitchen import Portion
from app.web.server import make_app

JPEG = {"content-type": "image/jpeg"}
_PART = b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n'


def scope(path: str, headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("hearth", 80),
        "client": ("127.0.0.1", 5),
        "headers": headers or [(b"content-type", b"image/jpeg")],
    }


async def test_a_sane_request_id_is_taken_and_another_made(client):
    assert (await client.get("/health/live", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for given in (b"a b\tc", b"\xe9", b"x" * 129):
        made = (await client.get("/health/live", headers={b"x-request-id": given})).headers["x-request-id"]
        assert len(made) == 32


@pytest.mark.parametrize(
    ("method", "path", "refused"),
    [
        ("POST", "/predict/image", True),
        ("GET", "/models", True),
        ("GET", "/models/toy", True),
        ("GET", "/health/live", False),
        ("GET", "/metrics", False),
        ("POST", "/models/toy/load", False),
    ],
)
async def test_in_an_overrun_only_what_everybody_may_ask_is_refused(app, client, method: str, path: str, refused: bool):
    app._overrun.on = True
    answer = await client.request(method, path, content=b"x" if path == "/predict/image" else b"", headers=JPEG)
    assert answer.status_code == (503 if refused else 200), answer.text
    if refused:
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("too_busy", "1")


@pytest.mark.parametrize("given", [b"abc\n", b"\xb2"])
async def test_no_id_holds_what_could_stand_for_something_else(app, given: bytes):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope("/secret", [(b"x-request-id", given)]), send, send)
    assert len(dict(sent[0]["headers"])[b"x-request-id"]) == 32


async def test_a_chunked_body_without_a_length_is_cut_off_at_the_limit(app):
    taken = 0
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        assert taken < 10, "it kept reading"
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope("/predict/image"), receive, send)
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["code"] == "too_large"
    assert taken == 3


@pytest.mark.parametrize(("length", "status"), [(b"0" * 5000, 400), (b"0" * 5000 + b"9" * 15, 413), (b"9" * 5000, 413)])
async def test_a_length_of_thousands_of_digits_is_a_number_like_any_other(app, length: bytes, status: int):
    """`int` refuses more than 4,300."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope("/embed/text", [(b"content-length", length)]), receive, send)
    assert sent[0]["status"] == status


async def test_a_client_that_leaves_takes_its_sample_along(app, pool):
    pool.held = True
    messages = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await pool.submitted.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass  # nobody listens

    task = asyncio.create_task(app(scope("/predict/image"), receive, send))
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert pool.dropped == 1


async def test_who_leaves_just_as_what_he_asked_is_to_begin_again_is_not_answered_for_nobody(app, monkeypatch):
    """Where one of several inputs fails in the moment of the cancellation, `asyncio.gather` raises that instead."""
    begun, passes = asyncio.Event(), list[int]()

    async def failing(*_: Any) -> list[Any]:
        passes.append(1)
        begun.set()
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            raise Renewed("it was loaded anew") from None

    messages = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    monkeypatch.setattr(answer, "answers", failing)
    task = asyncio.create_task(app(scope("/predict/image"), receive, send))
    await asyncio.wait([task], timeout=5)
    assert task.done() and not task.cancelled() and len(passes) == 1
    assert sent[0]["status"] == 499 and not task.cancelling()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("good", 200),
        ("slow", 200),
        ("left", 499),
        ("bad", 400),
        ("refused", 503),
        ("late", 504),
        ("one of two", 200),
        ("windows", 504),
    ],
)
async def test_a_request_is_gone_with_its_answer(app, pool, monkeypatch: pytest.MonkeyPatch, kind: str, status: int):
    """Waiting for the garbage collector, hundreds of them would hold what was uploaded, up to the limit each."""
    monkeypatch.setattr(answer, "_PATIENCE_S", 0.0)
    pool.held = kind in ("slow", "left")
    pool.refusal = TooBusy("full", retry_after_s=1) if kind == "refused" else None
    pool.error = Deadline("late") if kind in ("late", "windows") else None
    media, body = b"image/jpeg", {"bad": b"bad", "windows": b"long"}.get(kind, b"x")
    if kind == "one of two":
        media, body = b"multipart/form-data; boundary=b", (b"--b\r\n" + _PART + b"bad\r\n--b\r\n" + _PART + b"x\r\n--b--\r\n")
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        if kind == "left":
            return {"type": "http.disconnect"}
        pool.held = False  # it is watched for
        pool.go_on.set()
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    gc.collect()
    gc.disable()
    try:
        await app(scope("/predict/image", [(b"content-type", media)]), receive, send)
        await asyncio.sleep(0)  # who watched hears that it is over
        assert sent[0]["status"] == status
        pool.refusal = pool.error = None
        assert not [kept for kept in gc.get_objects() if type(kept) in (Request, Portion, answer._Watch)]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("media", "part"),
    [(b"image/jpeg", b"x" * 10), (b"multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"; ')],
    ids=["raw", "multipart"],
)
async def test_a_client_that_stops_sending_is_no_mistake_of_ours(app, media, part, caplog):
    messages = [{"type": "http.request", "body": part, "more_body": True}, {"type": "http.disconnect"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with caplog.at_level(logging.INFO, "hearth"):
        await app(scope("/predict/image", [(b"content-type", media)]), receive, send)
    assert sent[0]["status"] == 499
    assert [record.levelname for record in caplog.records] == ["INFO"], "a line of the access log, and no more"


@pytest.mark.parametrize("silence_s", [0.05, 30.0], ids=["silence", "deadline"])
async def test_a_body_that_stops_coming_is_a_408_that_closes(pool, silence_s):
    app = make_app(pool, Settings(silence_s=silence_s, timeout_s=0.05))
    messages = [{"type": "http.request", "body": b"x", "more_body": True}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asked = scope("/predict/image") | ({"query_string": b"timeout_ms=50"} if silence_s > 1 else {})
    await asyncio.wait_for(app(asked, receive, send), 10)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert ("HEARTH_SILENCE_S" if silence_s < 1 else "timeout_ms") in json.loads(sent[1]["body"])["detail"]


async def test_a_steady_body_may_take_longer_than_an_answer(pool):
    app = make_app(pool, Settings(silence_s=5.0, timeout_s=0.3))
    pieces = [b"x"] * 10
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)  # the line
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope("/predict/image"), receive, send), 10)
    assert sent[0]["status"] == 200


async def test_who_is_cancelled_while_a_body_comes_is_cancelled(app):
    waits = asyncio.Event()

    async def receive() -> dict[str, Any]:
        waits.set()
        return await asyncio.Future()

    task = asyncio.create_task(app(scope("/predict/image"), receive, receive))
    await asyncio.wait_for(waits.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_ready_is_what_the_pool_proved(client, pool):
    assert (await client.get("/health/ready")).status_code == 200
    pool.verdicts = {"toy": "toy.1: deadline: no answer", "other": ""}
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "models": {"toy": "toy.1: deadline: no answer", "other": "ready"}}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/models", "/finetune"])
async def test_a_query_where_none_is_taken_is_refused(client, path: str):
    answer = await client.get(f"{path}?x=1")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert "'x'" in answer.json()["detail"]


async def test_models_are_listed_shown_loaded_and_unloaded(client):
    (model,) = (await client.get("/models")).json()["models"]
    assert (model["name"], model["state"], model["workers"][0]["pid"]) == ("toy", "ready", 1)
    assert (await client.get("/models/toy")).json()["meta"] == {"classes": 1}
    assert (await client.get("/models/none")).status_code == 404
    assert (await client.post("/models/toy/unload")).json()["state"] == "unloaded"
    assert (await client.post("/models/toy/load")).json()["state"] == "ready"


async def test_metrics_are_prometheus_text(client):
    await client.post("/predict/image", content=b"xyz", headers={"content-type": "image/jpeg"})
    await client.post("/predict/image?model=evil-label", content=b"xyz", headers={"content-type": "image/jpeg"})
    text = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = [sample.labels for sample in families["hearth_requests"].samples]
    assert {"endpoint": "/predict/image", "model": "toy", "status": "200"} in labels
    assert "evil-label" not in text, "labels are bounded"
    assert families["hearth_errors"].samples[0].labels["code"]
    assert {"hearth_stage_seconds", "hearth_request_seconds", "hearth_worker_memory_bytes"} <= set(families)


async def test_the_documentation_needs_no_network(client):
    page = (await client.get("/docs")).text
    assert "//cdn" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/static/{asset}" in page
        assert (await client.get(f"/docs/static/{asset}")).status_code == 200
    schema = (await client.get("/openapi.json")).json()
    assert "image/webp" in schema["paths"]["/predict/image"]["post"]["requestBody"]["content"]
    assert "ProblemAnswer" in schema["components"]["schemas"]


async def test_any_call_may_hold_too_much_and_that_is_documented(client):
    for path, calls in (await client.get("/openapi.json")).json()["paths"].items():
        for verb, call in calls.items():
            answer = await client.request(verb, path, headers={"content-length": str(1 << 40)})
            assert answer.status_code == 413, (verb, path)
            assert {"413", "422"} <= set(call["responses"]), (verb, path)


async def test_what_comes_while_more_is_asked_than_can_be_read_is_refused_before_its_body(app):
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("it is read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app._overrun.on = True
    await app(scope("/predict/image"), receive, send)
    assert sent[0]["status"] == 503 and dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert json.loads(sent[1]["body"])["code"] == "too_busy"


async def test_health_is_told_while_more_is_asked_than_can_be_read(app, client):
    app._overrun.on = True
    assert (await client.get("/health/live")).status_code == 200
