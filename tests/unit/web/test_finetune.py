"""Jobs at the HTTP side: how many, what the disk and the database cannot do, and ids that are none. No tuner runs here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings, jobs_folder
from app.tuning.store import Store
from app.web.server import make_app


def client_of(pool: Any, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(pool, Settings(**settings)), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def client(pool: Any, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pool, home=tmp_path, max_jobs=2) as client:
        yield client


SPEC = ("spec", (None, json.dumps({"name": "photos", "base": "toy"})))


async def submit(client: httpx.AsyncClient, data: bytes = b"x") -> httpx.Response:
    return await client.post("/finetune", files=[SPEC, ("dataset", ("d.zip", data))])


def folders(home: Path) -> set[str]:
    return {path.name for path in jobs_folder(home).iterdir() if path.is_dir()}


async def test_no_more_jobs_are_open_than_may_be(client: httpx.AsyncClient, tmp_path: Path):
    first, second = [(await submit(client)).json()["id"] for _ in range(2)]
    refused = await submit(client)
    assert (refused.status_code, refused.json()["code"]) == (503, "too_busy") and int(refused.headers["retry-after"]) > 0
    assert "2 jobs are open, the limit is 2" in refused.json()["detail"]
    assert folders(tmp_path) == {first, second}, "nothing of what was refused is left"
    assert (await client.post(f"/finetune/{first}/cancel")).status_code == 200
    third = (await submit(client)).json()["id"]
    refused = await client.post(f"/finetune/{first}/resume")
    assert (refused.status_code, refused.json()["code"]) == (503, "too_busy") and int(refused.headers["retry-after"]) > 0
    assert (await client.get(f"/finetune/{first}")).json()["state"] == "cancelled"
    assert (await client.post(f"/finetune/{third}/resume")).status_code == 409
    await client.post(f"/finetune/{third}/cancel")
    assert (await client.post(f"/finetune/{first}/resume")).json()["state"] == "validating"


async def test_where_no_more_jobs_may_be_open_the_data_are_not_even_received(client: httpx.AsyncClient):
    for _ in range(2):
        await submit(client)
    sent = []

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="dataset"; filename="d"\r\n\r\n'
        for _ in range(100):
            sent.append(1)
            yield bytes(1 << 10)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    refused = await client.post("/finetune", content=body(), headers=headers)
    assert refused.status_code == 503 and not sent


PART = b'--b\r\ncontent-disposition: form-data; name="%s"; filename="d"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PART % b"dataset" + PART[:-6] % b"spec", "it ends before its last boundary"),
        (PART % b"spec" * 9 + b"--b--", "Too many files"),
        (b"nonsense", "Invalid multipart data"),
    ],
)
async def test_a_damaged_form_is_told_from_one_that_lacks_a_part(client: httpx.AsyncClient, body: bytes, words: str):
    answer = await client.post("/finetune", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_input")
    assert "the body is no multipart form" in answer.json()["detail"] and words in answer.json()["detail"], answer.text


TABLE = ("dataset", ("a.csv", b"x"))


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([SPEC, TABLE, ("dataset", ("b.csv", b"y"))], 422, "the part 'dataset' came twice; send one, and several tables"),
        ([SPEC, SPEC, TABLE], 422, "the part 'spec' came twice"),
        ([SPEC, TABLE, ("seed", (None, "7"))], 422, "unknown part 'seed'; send spec, JSON with all that is to be set"),
        ([SPEC, *[("val", ("b.csv", b"y"))] * 4], 422, "unknown part 'val'"),
        ([SPEC, ("dataset", (None, "text,label"))], 400, "the part 'dataset' came as text; send dataset as a file (curl -F"),
        ([SPEC, ("dataset", (None, "text,label" * 200_000))], 400, "dataset as a file (curl -F dataset=@"),
        ([SPEC], 400, "the part 'dataset' is missing; send dataset as a file"),
    ],
)
async def test_no_part_of_a_form_is_dropped_without_a_word(client: httpx.AsyncClient, parts: Any, status: int, words: str):
    answer = await client.post("/finetune", files=parts)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


@pytest.mark.parametrize("name", [None, "spec.json"], ids=["text", "file"])
async def test_a_spec_without_end_is_too_large(client: httpx.AsyncClient, name: str | None):
    long = json.dumps({f"field{number}": number for number in range(10_000)})
    answer = await client.post("/finetune", files=[("spec", (name, long)), TABLE])
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large") and "limit is 65536" in answer.text


@pytest.mark.parametrize("id", ["nope", "%00", "0123456789AB", "0123456789abc", "%F0%9F%98%80"])
@pytest.mark.parametrize("call", ["GET", "GET events", "GET log", "POST cancel", "POST resume", "DELETE"])
async def test_what_cannot_be_an_id_is_an_unknown_job(client: httpx.AsyncClient, id: str, call: str):
    method, _, what = call.partition(" ")
    answer = await client.request(method, f"/finetune/{id}" + (f"/{what}" if what else ""))
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")


@pytest.mark.parametrize("number", ["2147483648", "-1", "one", "9" * 20])
async def test_an_event_that_no_database_can_have_is_refused(client: httpx.AsyncClient, number: str):
    id = (await submit(client)).json()["id"]
    answer = await client.get(f"/finetune/{id}/events", headers={"Last-Event-ID": number})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


async def test_who_saw_the_last_event_of_a_job_that_is_over_is_told_not_to_come_back(client: httpx.AsyncClient):
    """A browser's EventSource asks again for ever, unless it is answered 204."""
    id = (await submit(client)).json()["id"]
    await client.post(f"/finetune/{id}/cancel")
    told = await client.get(f"/finetune/{id}/events")
    last = told.text.rpartition("id: ")[2].partition("\n")[0]
    assert told.status_code == 200 and '"state":"cancelled"' in told.text
    again = await client.get(f"/finetune/{id}/events", headers={"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")
    await client.post(f"/finetune/{id}/resume")
    await client.post(f"/finetune/{id}/cancel")
    assert "validating" in (await client.get(f"/finetune/{id}/events", headers={"Last-Event-ID": last})).text


@pytest.mark.parametrize("call", ["GET /finetune", "GET /finetune/0123456789ab", "POST /finetune/0123456789ab/cancel"])
async def test_while_the_database_is_away_that_is_said(pool: Any, tmp_path: Path, call: str):
    pytest.importorskip("psycopg")
    away = f"postgresql+psycopg://postgres@/postgres?host={tmp_path}"
    async with client_of(pool, home=tmp_path, database=away) as client:
        answer = await client.request(*call.split(" "))
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable") and answer.headers["retry-after"]
        assert "the database of jobs is away" in answer.json()["detail"]
        assert (await submit(client)).status_code == 503


def fill(disk: Path) -> Path:
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return path


async def test_an_upload_for_which_the_disk_has_no_room_is_too_large(
    pool: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whether the form, its copy, the folder or the row does not fit."""
    (small_disk / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(small_disk / "tmp"))  # as in a frontend
    async with client_of(pool, home=small_disk) as client:
        assert (await submit(client)).status_code == 202
        for size in (16 << 20, 9 << 20):
            answer = await submit(client, bytes(size))
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large"), answer.text
            assert "the server's disk is full; make room in HEARTH_HOME, or send less" in answer.json()["detail"]
        fill(small_disk)
        assert (await submit(client)).status_code == 413
        assert len(folders(small_disk)) == 1


async def test_on_a_full_disk_a_call_says_so_and_forgetting_a_job_makes_room(pool: Any, small_disk: Path):
    async with client_of(pool, home=small_disk) as client:
        first, second = [(await submit(client, bytes(1 << 20))).json()["id"] for _ in range(2)]
        await client.post(f"/finetune/{first}/cancel")
        fill(small_disk)
        for _ in range(50):  # until the room that the log of changes has is used up
            answer = await client.post(f"/finetune/{second}/cancel")
            if answer.status_code != 200:
                break
            await client.post(f"/finetune/{second}/resume")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
        assert "the server's disk is full" in answer.json()["detail"]
        assert (await client.delete(f"/finetune/{first}")).status_code == 204
        assert folders(small_disk) == {second}
        assert {job.id for job in Store.of(small_disk).all()} == {second}
