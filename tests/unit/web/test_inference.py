"""The inference endpoints over a toy pool: shapes, several inputs, and what each mistake gets."""

from __future__ import annotations

import asyncio
import base64
import errno
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from app.errors import ERRORS, Loading, TooBusy
from app.pool.base import Answer, Renewed
from app.tasks.base import Decoded
from app.web.problems import STATUS
from app.web.schemas import EmbedText, PredictText
from tests.unit.web.conftest import ToyCodec

JPEG = {"content-type": "image/jpeg"}


def told(answer: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """Every error has the same shape."""
    body = answer.json()
    assert (answer.status_code, body.get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["title"] and body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    for word in words:
        assert word in body["detail"], body["detail"]
    return body


async def test_a_raw_picture_is_answered(client):
    answer = await client.post("/predict/image?top_k=1", content=b"12345", headers=JPEG)
    assert answer.json() == {
        "model": "toy",
        "version": "1",
        "results": [{"predictions": [{"label": "len", "index": 0, "score": 5.0}]}],
    }
    stages = [entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "run", "interpret"]


@pytest.mark.parametrize("body", [EmbedText, PredictText])
async def test_many_wrong_inputs_are_one_mistake(client, body: type[BaseModel]):
    """An error of each would take 4 µs and a kilobyte, in the loop."""
    with pytest.raises(ValidationError) as error:
        body.model_validate({"inputs": [0] * 100_000})
    assert error.value.error_count() <= 2, "one for each way to give them"
    told(await client.post("/predict/text", json={"inputs": ["good", 0, 0]}), 422, "invalid", "inputs", "string")


@pytest.mark.parametrize("wide", [{}, {"inputs": {}}, {"timeout_ms": {}}], ids=["body", "inputs", "another"])
async def test_fields_without_end_are_one_mistake(client, wide: dict[str, Any]):
    for field in wide or [None]:
        (wide[field] if field else wide).update({str(n): 0 for n in range(6_000)})
    told(await client.post("/embed/text", json=wide), 422, "invalid", "6000 fields", "the limit is 128")


LARGE = "x" * (1 << 16)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": [LARGE, []]}, ("`$.inputs[1]`", "got `array`")),
        ({"inputs": LARGE, "model": {}}, ("`$.model`", "got `object`")),
        ({"inputs": LARGE, LARGE: 1}, ("unknown field", "known: inputs, model")),
        ([LARGE], ("got `array`",)),
        ({"inputs": LARGE, "timeout_ms": "1"}, ("timeout_ms", "integer")),
        ({"model": LARGE}, ("inputs", "required")),
    ],
)
async def test_of_a_large_body_only_what_may_be_in_it_is_made(client, body: Any, words: tuple[str, ...]):
    """Eight megabytes of empty lists took a quarter of a second, in which nobody else was heard, and 190 MB."""
    answer = told(await client.post("/embed/text", json=body), 422, "invalid", *words)
    assert len(answer["detail"]) < 500


@pytest.mark.parametrize("body", [b'{"inputs": "%s"', b'{"inputs": "%s\xff"}', b'{"inputs": "%s\\ud800"}', b"[" * 100 + b'"%s"'])
async def test_a_large_body_that_is_no_json_is_told_so(client, body: bytes):
    raw = body.replace(b"%s", LARGE.encode())
    told(await client.post("/embed/text", content=raw), *((422, "invalid") if raw[:1] == b"[" else (400, "bad_input")))


async def test_a_large_body_is_read_as_a_small_one(client):
    many = ["é" * 100] * 1000
    answer = await client.post("/embed/text", json={"inputs": [*many[:256], LARGE], "truncate": True, "model": None})
    told(answer, 413, "too_large", "257 inputs")
    answer = await client.post("/embed/text", json={"inputs": [LARGE, "é\U0001f525"], "truncate": True, "timeout_ms": 5000})
    assert answer.status_code == 200 and answer.json()["embeddings"] == [[len(LARGE), 0.5], [2.0, 0.5]]


@pytest.mark.parametrize("path", ["/embed/text", "/predict/text"])
async def test_nobody_hears_the_whole_of_what_he_said(client, path: str):
    for body in ({"inputs": "a", "model": "\x7f" * 50_000}, {"inputs": "a", "\x7f" * 50_000: 1}):
        answer = await client.post(path, json=body)
        assert answer.status_code in (404, 422) and len(answer.content) < 2_000


async def test_parameters_without_end_are_one_mistake(client):
    query = "&".join(f"p{n}=1" for n in range(5_000))
    told(await client.post(f"/predict/image?{query}", content=b"12345", headers=JPEG), 422, "invalid", "5000 parameters", "top_k")


@pytest.mark.parametrize("path", ["/predict/image", "/finetune"])
@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "utf-16", "x" * 5000])
async def test_no_codec_is_chosen_by_the_caller(client, path: str, charset: str):
    """Some of Python's take minutes for a megabyte: punycode's time grows with the square."""
    body = b'--b\r\nContent-Disposition: form-data; name="a-"; filename="a..b"\r\n\r\nx\r\n--b--\r\n'
    media = f"multipart/form-data; boundary=b; charset={charset}"
    answer = await client.post(path, content=body, headers={"content-type": media})
    told(answer, 400, "bad_input", "charset", "utf-8")
    assert len(answer.text) < 1000


async def test_utf_8_may_be_said(client):
    body = '--b\r\nContent-Disposition: form-data; name="file"; filename="ö.jpg"\r\n\r\nxxx\r\n--b--\r\n'.encode()
    media = 'multipart/form-data; boundary=b; charset="UTF-8"'
    answer = await client.post("/predict/image", content=body, headers={"content-type": media})
    assert answer.json()["results"][0]["file"] == "ö.jpg"


@pytest.mark.parametrize("query", ["model=toy&model=other", "top_k=1&model=toy&model=toy", "model=&model=toy"])
async def test_a_parameter_given_twice_is_refused(client, query: str):
    answer = await client.post(f"/predict/image?{query}", content=b"12345", headers=JPEG)
    told(answer, 422, "invalid", "'model'", "2 times", "once")


async def test_several_files_are_answered_in_order_and_by_name(client):
    files = [("file", (f"{n}.jpg", b"x" * n)) for n in (3, 1, 2)]
    results = (await client.post("/predict/image", files=files)).json()["results"]
    assert [(r["file"], r["predictions"][0]["score"]) for r in results] == [("3.jpg", 3.0), ("1.jpg", 1.0), ("2.jpg", 2.0)]


async def test_a_broken_file_among_others_gets_its_own_error(client):
    files = [("file", ("a.jpg", b"xx")), ("file", ("b.jpg", b"bad"))]
    answer = await client.post("/predict/image", files=files)
    assert answer.status_code == 200
    good, bad = answer.json()["results"]
    assert good["predictions"]
    assert bad == {"file": "b.jpg", "error": {"code": "bad_input", "detail": "the picture is truncated; send the whole file"}}


async def test_a_broken_file_alone_is_the_callers_error(client):
    told(await client.post("/predict/image", content=b"bad", headers=JPEG), 400, "bad_input", "truncated")


async def test_texts_become_vectors(client):
    body = (await client.post("/embed/text", json={"inputs": ["ab", "cde"]})).json()
    assert body["embeddings"] == [[2.0, 0.5], [3.0, 0.5]]
    assert body["usage"] == {"tokens": 5}
    body = (await client.post("/embed/text", json={"inputs": "ab", "encoding": "base64"})).json()
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(body["embeddings"][0]), "<f4"), [2.0, 0.5])


async def test_texts_are_classified_in_order_and_a_bad_one_gets_its_own_error(client):
    body = (await client.post("/predict/text", json={"inputs": ["ab", "bad", "cde"], "top_k": 1, "truncate": True})).json()
    assert (body["model"], body["version"]) == ("toy", "1")
    two, bad, three = body["results"]
    assert two == {"predictions": [{"label": "len", "index": 0, "score": 2.0}]} and three["predictions"][0]["score"] == 3.0
    assert bad["error"]["code"] == "bad_input"
    told(await client.post("/predict/text", json={"inputs": "bad"}), 400, "bad_input", "truncated")


async def test_a_bad_text_among_others_leaves_a_hole_and_a_reason(client):
    body = (await client.post("/embed/text", json={"inputs": ["ab", "bad"]})).json()
    assert body["embeddings"] == [[2.0, 0.5], None]
    assert body["errors"]["1"]["code"] == "bad_input"


async def test_pictures_become_vectors(client):
    body = (await client.post("/embed/image?encoding=base64", content=b"1234", headers=JPEG)).json()
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(body["embeddings"][0]), "<f4"), [4.0, 0.5])


async def test_a_long_recording_is_one_result_of_several_windows(client):
    body = (await client.post("/transcribe", content=b"long one", headers={"content-type": "audio/wav"})).json()
    assert body["results"][0]["text"] == "2 windows"


@pytest.mark.parametrize(
    ("request_", "status", "code", "words"),
    [
        (("/predict/image?topk=3", {"content": b"x", "headers": JPEG}), 422, "invalid", ["topk"]),
        (("/predict/image?top_k=0", {"content": b"x", "headers": JPEG}), 422, "invalid", ["top_k", "greater than or equal to 1"]),
        (("/predict/image?timeout_ms=soon", {"content": b"x", "headers": JPEG}), 422, "invalid", ["timeout_ms"]),
        (("/predict/image?model=none", {"content": b"x", "headers": JPEG}), 404, "unknown_model", ["none", "toy"]),
        (
            ("/predict/image", {"content": b"x", "headers": {"content-type": "text/plain"}}),
            415,
            "unsupported_media",
            ["image/png"],
        ),
        (("/transcribe", {"content": b"x", "headers": JPEG}), 415, "unsupported_media", ["audio/wav"]),
        (("/predict/image", {"content": b"x" * 300_000, "headers": JPEG}), 413, "too_large", ["0.25 MiB", "HEARTH_MAX_BODY_MB"]),
        (("/predict/image", {"files": [("picture", ("a", b"x"))]}), 422, "invalid", ["'picture'", "'file'"]),
        (("/predict/image", {"files": [("file", ("a", b"x"))] * 5}), 413, "too_large", ["limit is 4"]),
        (
            ("/predict/image", {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
            400,
            "bad_input",
            [],
        ),
        (
            ("/predict/image", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
            400,
            "bad_input",
            ["multipart"],
        ),
        (("/embed/text", {"content": b"{"}), 400, "bad_input", ["JSON"]),
        (("/embed/text", {"content": b""}), 400, "bad_input", ["empty"]),
        (("/embed/text", {"content": b"[1]"}), 422, "invalid", ["body"]),
        (("/embed/text", {"content": b'{"inputs": "\\ud800"}'}), 400, "bad_input", ["surrogate"]),
        (("/embed/text", {"json": {"inputs": 3}}), 422, "invalid", ["inputs"]),
        (("/embed/text", {"json": {"inputs": ["a", 3]}}), 422, "invalid", ["inputs"]),
        (("/embed/text", {"json": {"input": "a"}}), 422, "invalid", ["input", "inputs"]),
        (("/embed/text", {"json": {"inputs": "a", "truncate": 1}}), 422, "invalid", ["truncate"]),
        (("/embed/text", {"json": {"inputs": ["a"] * 5}}), 413, "too_large", ["5 inputs", "limit is 4"]),
        (("/embed/text", {"json": {"inputs": []}}), 422, "invalid", ["inputs"]),
        (("/predict/text", {"json": {"inputs": []}}), 422, "invalid", ["inputs"]),
        (("/predict/text", {"json": {"inputs": ["a"] * 5}}), 413, "too_large", ["5 inputs", "limit is 4"]),
        (("/predict/text", {"json": {"inputs": "a", "top_k": 0}}), 422, "invalid", ["top_k"]),
        (("/predict/text", {"json": {"inputs": "a", "normalize": True}}), 422, "invalid", ["normalize", "top_k"]),
        (
            ("/embed/text", {"content": b"a", "headers": {"content-type": "text/csv"}}),
            415,
            "unsupported_media",
            ["application/json"],
        ),
        (("/nowhere", {}), 404, "not_found", ["/docs"]),
    ],
)
async def test_a_mistake_is_named_with_limit_and_remedy(client, request_, status, code, words):
    path, options = request_
    told(await client.post(path, **options), status, code, *words)


async def test_the_wrong_method_is_told(client):
    answer = await client.get("/predict/image")
    told(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("code", sorted(ERRORS))
async def test_every_failure_has_its_status(client, pool, code):
    pool.error = ERRORS[code]("the detail")
    told(await client.post("/predict/image", content=b"x", headers=JPEG), STATUS[code][0], code, "the detail")


async def test_what_was_decoded_for_a_model_that_is_loaded_anew_meanwhile_is_decoded_again(client, pool, monkeypatch):
    past = Mock()
    monkeypatch.setattr("app.web.answer.PAST", Mock(get=lambda: past))
    pool.held, files = True, [("file", ("1.png", b"12345", "image/png")), ("file", ("2.png", b"123", "image/png"))]
    asked = asyncio.create_task(client.post("/predict/image", files=files))
    await asyncio.wait_for(pool.submitted.wait(), 5)
    pool.codec = ToyCodec()
    pool.codec.more, pool.held = 10, False
    pool.refusal, pool.unloaded = TooBusy("for those who come now", retry_after_s=1), True
    pool.coming = 2
    pool.go_on.set()
    results = (await asyncio.wait_for(asked, 5)).json()["results"]
    assert [result["predictions"][0]["score"] for result in results] == [15.0, 13.0], "both by the new one"
    assert not pool.coming
    past.again.assert_called_once_with()


async def test_who_was_let_in_by_a_process_before_holds_his_model_while_it_comes(client, pool):
    pool.let_in, pool.coming, pool.held = True, 3, True
    asked = asyncio.create_task(client.post("/predict/image", content=b"12345", headers=JPEG))
    async with asyncio.timeout(5):
        while pool.coming:
            await asyncio.sleep(0.01)
            assert pool.inside == (pool.coming < 3)
    pool.held = False
    assert (await asyncio.wait_for(asked, 5)).status_code == 200


async def test_what_is_to_begin_again_waits_for_its_model_until_its_deadline(client, pool):
    pool.held, pool.coming = True, 10**9
    asked = asyncio.create_task(client.post("/predict/image?timeout_ms=400", content=b"12345", headers=JPEG))
    await asyncio.wait_for(pool.submitted.wait(), 5)
    pool.codec, pool.held = ToyCodec(), False
    pool.go_on.set()
    told(await asyncio.wait_for(asked, 5), 504, "deadline", "toy is not ready yet", "timeout_ms")
    assert pool.coming < 10**9


async def test_what_else_is_read_for_a_model_that_is_loaded_anew_is_dropped(client, pool, monkeypatch):
    """It was read to its end for the old one, and then once more: twice the time, of one deadline."""
    begun, released = threading.Event(), threading.Event()

    def decode(codec: ToyCodec, item: bytes, **options: Any) -> Decoded:
        if codec is not old:
            released.set()
        elif len(item) > 5:
            begun.set()
            assert released.wait(10)
        return plain(codec, item, **options)

    plain = ToyCodec.decode
    monkeypatch.setattr(ToyCodec, "decode", decode)
    pool.codec = old = ToyCodec()
    pool.held = True
    files = [("file", (f"{size}.png", b"long".ljust(size), "image/png")) for size in (5, 6, 7, 8)]
    asked = asyncio.create_task(client.post("/predict/image", files=files))
    await asyncio.wait_for(pool.submitted.wait(), 5)
    await asyncio.to_thread(begun.wait, 20)
    pool.codec, pool.held = ToyCodec(), False
    pool.codec.more = 10
    pool.go_on.set()
    results = (await asyncio.wait_for(asked, 5)).json()["results"]
    assert [result["predictions"][0]["score"] for result in results] == [15.0, 16.0, 17.0, 18.0]


@pytest.mark.parametrize(("error", "counted"), [(Renewed, "skipped"), (Loading, "failed")])
async def test_a_copy_for_a_version_that_is_loaded_anew_meanwhile_is_not_its_failure(client, pool, monkeypatch, error, counted):
    told, counts = asyncio.Event(), list[tuple[str, str]]()

    def count(*what: str) -> None:
        counts.append(what)
        told.set()

    answer = Answer(output={"x": np.array([5.0])}, queue_s=0.0, run_s=0.0, batch=1)
    monkeypatch.setattr(pool, "submit", AsyncMock(side_effect=[answer, error("of its own")]))
    monkeypatch.setattr("app.web.shadow.tally", lambda: SimpleNamespace(shadow=count))
    pool.shadowed = "toy"
    assert (await client.post("/predict/image", content=b"12345", headers=JPEG)).status_code == 200
    await asyncio.wait_for(told.wait(), 5)
    assert counts == [("toy", counted)]


async def test_a_full_queue_says_when_to_come_back(client, pool):
    pool.refusal = TooBusy("full", retry_after_s=2.4)
    answer = await client.post("/predict/image", content=b"x", headers=JPEG)
    told(answer, 503, "too_busy")
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize(("path", "body"), [("/predict/image", b"x"), ("/models/a/load", b"")])
async def test_too_few_descriptors_are_no_mistake_of_ours(client, pool, monkeypatch, path, body):
    error = OSError(errno.EMFILE, "Too many open files", "/secret")
    pool.error = error
    monkeypatch.setattr(pool, "change", AsyncMock(side_effect=error))
    answer = await client.post(path, content=body, headers=JPEG)
    assert "secret" not in str(told(answer, 503, "too_busy"))
    assert answer.headers["retry-after"] == "1"


async def test_after_a_mistake_of_ours_the_connection_stays_open(app, pool, monkeypatch):
    """Starlette raises it once more, and uvicorn closes then: the next request on it was lost."""
    monkeypatch.setattr(pool, "change", AsyncMock(side_effect=RuntimeError("secret")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        told(await client.post("/models/a/load"), 500, "internal")


async def test_a_mistake_in_the_middle_of_an_answer_closes_the_connection(app, monkeypatch):
    """What is sent of it is not the whole: nobody may take it for that."""

    async def fails(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        scope["state"]["code"] = "internal"
        raise RuntimeError("here")

    monkeypatch.setattr(app, "_app", fails)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        with pytest.raises(RuntimeError, match="here"):
            await client.get("/models")


async def test_a_mistake_after_an_answer_is_told_in_the_log(app, monkeypatch, caplog):
    async def fails(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})
        raise RuntimeError("here")

    monkeypatch.setattr(app, "_app", fails)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/models")).content == b"whole"
    assert "after the answer" in caplog.text and "here" in caplog.text


async def test_a_mistake_of_ours_is_not_shown(client, pool):
    pool.error = RuntimeError("secret path /x")  # type: ignore[assignment]
    body = told(await client.post("/predict/image", content=b"x", headers=JPEG), 500, "internal")
    assert "secret" not in str(body)
