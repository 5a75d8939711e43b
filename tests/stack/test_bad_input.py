"""What bad input gets: a 4xx problem that names the limit and the remedy, quickly, with its neighbours unharmed."""

from __future__ import annotations

import io
import struct
import threading
import time
import wave as wave_module
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.stack.conftest import Server, picture, wave

PNG = {"content-type": "image/png"}
WAV = {"content-type": "audio/wav"}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, idat: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((300, 200), 80).convert("RGB").save(out, "JPEG")
    return out.getvalue()


ZEROS = zlib.compress(bytes(200_000_000), 9)  # 200 MB in 200 kB


def two_hours() -> bytes:
    """A WAV of 8 bits at 1 kHz: below the limit of the body."""
    out = io.BytesIO()
    with wave_module.open(out, "wb") as file:
        file.setparams((1, 1, 1000, 0, "NONE", ""))
        file.writeframes(b"\x90" * 7_200_000)
    return out.getvalue()


CASES: dict[str, tuple[str, dict[str, Any], int, str, tuple[str, ...]]] = {
    "empty body": ("/predict/image", {"content": b"", "headers": PNG}, 400, "bad_input", ("empty",)),
    "text as image": (
        "/predict/image",
        {"content": b"not a picture at all", "headers": PNG},
        415,
        "unsupported_media",
        ("JPEG",),
    ),
    "truncated JPEG": ("/predict/image", {"content": jpeg()[:3000], "headers": PNG}, 400, "bad_input", ("truncated", "whole")),
    "60,000 x 60,000 PNG": (
        "/predict/image",
        {"content": png(60_000, 60_000, b""), "headers": PNG},
        413,
        "too_large",
        ("50 megapixels", "smaller"),
    ),
    "PNG bomb in the pixels": (
        "/predict/image",
        {"content": png(40_000, 40_000, ZEROS), "headers": PNG},
        413,
        "too_large",
        ("megapixels",),
    ),
    "PNG bomb in a text": (
        "/predict/image",
        {"content": png(8, 8, zlib.compress(bytes(8 * 25)), chunk(b"zTXt", b"k\0\0" + ZEROS)), "headers": PNG},
        400,
        "bad_input",
        (),
    ),
    "silent audio": ("/transcribe", {"content": wave(2, value=0.0), "headers": WAV}, 400, "bad_input", ("silent", "-70 dBFS")),
    "empty audio": ("/transcribe", {"content": wave(0), "headers": WAV}, 400, "bad_input", ("25 ms",)),
    "audio body of no bytes": ("/transcribe", {"content": b"", "headers": WAV}, 400, "bad_input", ("empty",)),
    "2-hour audio": (
        "/transcribe",
        {"content": two_hours(), "headers": WAV},
        413,
        "too_large",
        ("limit is 1", "in parts"),
    ),
    "NaN audio": ("/transcribe", {"content": wave(1, value=float("nan")), "headers": WAV}, 400, "bad_input", ("NaN",)),
    "text as audio": ("/transcribe", {"content": b"hello " * 50, "headers": WAV}, 415, "unsupported_media", ("FLAC",)),
    "playlist as audio": (
        "/transcribe",
        {"content": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "headers": WAV},
        415,
        "unsupported_media",
        (),
    ),
    "empty string": ("/embed/text", {"json": {"inputs": ""}}, 422, "invalid", ("empty",)),
    "white space": ("/embed/text", {"json": {"inputs": " \n\t"}}, 422, "invalid", ("white space",)),
    "lone surrogate": ("/embed/text", {"content": b'{"inputs": "\\ud800"}'}, 400, "bad_input", ("surrogate",)),
    "1 MB string": ("/embed/text", {"json": {"inputs": "word " * 200_000}}, 413, "too_large", ("256", "truncate")),
    "too many tokens": ("/embed/text", {"json": {"inputs": "word " * 300}}, 413, "too_large", ("302 tokens", "256", "truncate")),
    "257 inputs": ("/embed/text", {"json": {"inputs": ["a"] * 257}}, 413, "too_large", ("257", "256")),
    "257 files": ("/predict/image", {"files": [("file", ("a", b"x"))] * 257}, 413, "too_large", ("256",)),
    "wrong type": ("/embed/text", {"json": {"inputs": {"a": 1}}}, 422, "invalid", ("inputs",)),
    "unknown model": (
        "/embed/text",
        {"json": {"inputs": "a", "model": "gpt-9"}},
        404,
        "unknown_model",
        ("gpt-9", "all-minilm-l6-v2"),
    ),
    "model of path kind": ("/predict/image?model=../../etc", {"content": b"x", "headers": PNG}, 404, "unknown_model", ()),
    "query where none is taken": ("/embed/text?model=x", {"json": {"inputs": "a"}}, 422, "invalid", ("'model'", "body")),
    "query of a list": ("/models/toy/load?x=1", {}, 422, "invalid", ("'x'",)),
    "unknown query parameter": ("/predict/image?topk=1", {"content": b"x", "headers": PNG}, 422, "invalid", ("topk",)),
    "unknown media type": (
        "/predict/image",
        {"content": b"x", "headers": {"content-type": "text/html"}},
        415,
        "unsupported_media",
        ("image/png",),
    ),
    "body over the limit": (
        "/predict/image",
        {"content": bytes(9_000_000), "headers": PNG},
        413,
        "too_large",
        ("8 MiB", "HEARTH_MAX_BODY_MB"),
    ),
    "chunked body over the limit": (
        "/predict/image",
        {"content": (bytes(100_000) for _ in range(1000)), "headers": PNG},
        413,
        "too_large",
        ("8 MiB",),
    ),
    "too many dimensions": ("/embed/text", {"json": {"inputs": "a", "dimensions": 385}}, 422, "invalid", ("385", "384")),
}


@pytest.fixture(scope="module")
def neighbours(server: Server) -> Iterator[list[str]]:
    """Good requests that run beside all the bad ones, each answer compared."""
    wrong: list[str] = []
    stop = threading.Event()
    right = {
        "text": server.http.post("/embed/text", json={"inputs": "a neighbour"}).json(),
        "image": server.predict(picture(5, 6, 7)).json(),
    }

    def run() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as http:
            while not stop.is_set():
                text = http.post("/embed/text", json={"inputs": "a neighbour"}).json()
                image = http.post("/predict/image", content=picture(5, 6, 7)).json()
                drift = np.abs(np.array(text["embeddings"]) - np.array(right["text"]["embeddings"])).max()
                if drift > 1e-5 or [p["label"] for p in image["results"][0]["predictions"]] != [
                    p["label"] for p in right["image"]["results"][0]["predictions"]
                ]:
                    wrong.append(str((drift, image)))

    thread = threading.Thread(target=run)
    thread.start()
    yield wrong
    stop.set()
    thread.join()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_limit_and_remedy(server: Server, neighbours: list[str], name: str):
    path, options, status, code, words = CASES[name]
    workers = {model: server.worker(model) for model in ("toy", "all-minilm-l6-v2")}
    path = f"{path}?model=toy-speech" if path == "/transcribe" else path
    started = time.monotonic()
    try:
        answer = server.http.post(path, **options)
    except (httpx.WriteError, httpx.ReadError):
        assert name == "chunked body over the limit", "only a sender that does not listen may be cut off"
        return
    seconds = time.monotonic() - started
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in body["detail"], body["detail"]
    assert seconds < 5, "a bound against hanging; unit tests count work"
    assert not neighbours
    assert workers == {model: server.worker(model) for model in workers}


def test_refusals_are_quicker_than_answers(server: Server):
    """Medians of ten, one after another; a refusal does strictly less work than the good request beside it."""

    def median(path: str, **options: Any) -> float:
        times = []
        for _ in range(10):
            started = time.monotonic()
            server.http.post(path, **options)
            times.append(time.monotonic() - started)
        return sorted(times)[5]

    big = io.BytesIO()
    Image.effect_noise((2000, 1500), 90).save(big, "PNG")
    good = median("/predict/image", content=big.getvalue())
    assert median("/predict/image", content=png(60_000, 60_000, b"")) < good
    assert median("/predict/image", content=b"text") < good
    good = median("/embed/text", json={"inputs": "word " * 250})
    assert median("/embed/text", json={"inputs": "word " * 200_000}) < good * 2, "a body of 1 MB must at least be read"
