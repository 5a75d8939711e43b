"""What is fuzzed: each decoder of ours that reads bytes of strangers, with files to begin from and words of its language."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
from starlette.requests import Request

from app.catalogue import read_card
from app.decoding.client import Threads
from app.errors import HearthError
from app.settings import Settings
from app.tasks import table
from app.tasks.findings import Findings
from app.tasks.image import idx
from app.tasks.image.codec import PictureReader
from app.tasks.image.input import ImageInput
from app.tasks.speech.codec import SoundReader
from app.tasks.speech.input import SpeechInput
from app.tasks.text import table as texts
from app.tuning.archive import Bounds, is_archive, unpack
from app.tuning.data import strip
from app.tuning.job import is_id
from app.web import finetune, read, schemas
from app.web.kitchen import Kitchen
from app.web.sketch import sketch
from app.wire.frames import PREFIX, FrameError, Splitter, pack, unpack as unpack_letters
from app.wire.messages import Cancel, Decode, Done, Failed, Run, Samples
from app.wire.parcels import ParcelStream
from tests.fuzz import seeds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """`run` may raise `allowed` alone; what it returns tells in which way the input was taken. `share` of a thousand executions; `seconds` of the processor for one."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    allowed: tuple[type[Exception], ...]
    words: Sequence[bytes] = ()
    share: int = 100
    seconds: float = 5.0


@cache
def _folder() -> Path:
    """In memory where there is some: archives and tables are read from files."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="hearth-fuzz-", dir=where))


def _image(data: bytes) -> None:
    input = ImageInput(resize=32, crop=32, color="gray" if len(data) % 2 else "rgb")
    (sample,) = PictureReader(input, 1_000_000).decode(data).samples
    assert sample.arrays["pixels"].shape[:2] == (32, 32)


def _audio(data: bytes) -> None:
    decoded = SoundReader(SpeechInput(window_s=2, overlap_s=0.4), 60).decode(data)
    assert all(np.isfinite(sample.arrays["waveform"]).all() for sample in decoded.samples)


def _archive(data: bytes) -> None:
    packed, into = _folder() / "packed", _folder() / "into"
    packed.write_bytes(data)
    into.mkdir()
    try:
        is_archive(packed)
        unpack(packed, into, Bounds(files=50, bytes=1 << 20, directory=1 << 16))
        strip(into)
    finally:
        assert {path.name for path in _folder().iterdir()} <= {"packed", "into", "toy"}, "something got out"
        assert sum(path.stat().st_size for path in into.rglob("*") if path.is_file()) <= 2 << 20
        shutil.rmtree(into)


def _card(data: bytes) -> None:
    folder = _folder() / "toy"
    folder.mkdir(exist_ok=True)
    (folder / "card.toml").write_bytes(data)
    read_card(folder)


def _frame(data: bytes) -> None:
    for message, arrays in unpack_letters(data):
        repr(message)
        assert all(array.nbytes <= len(data) for array in arrays.values())


def _stream(data: bytes) -> None:
    splitter, at = Splitter(), 0
    while at < len(data):
        room = splitter.room
        piece = data[at : at + 1 + data[at] % 200]
        at += len(piece)
        if room is None:
            found = list(splitter.feed(piece))
        else:
            piece = piece[: len(room)]
            room[: len(piece)] = piece
            found = list(splitter.fill(len(piece)))
        for envelope in found:
            unpack_letters(envelope)


def _parcels(data: bytes) -> None:
    """On the socket, or in memory that is handed over, as every large file comes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if len(data) % 2 and hasattr(os, "memfd_create"):
            with open(os.memfd_create("letter", os.MFD_ALLOW_SEALING), "wb", buffering=0) as memory:
                memory.write(data)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
                socket.send_fds(theirs, [data[: PREFIX.size]], [memory.fileno()])
        else:
            theirs.sendall(data[: 1 << 15])
        theirs.shutdown(socket.SHUT_WR)
        parcels = ParcelStream(ours)
        while parcels.read() is not None:
            pass


def _request(data: bytes, content_type: str, query: bytes = b"") -> Request:
    sent = [{"type": "http.request", "body": data[at : at + 4096], "more_body": True} for at in range(0, len(data), 4096)]
    sent.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return sent.pop(0)

    headers = [(b"content-type", content_type.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": query, "state": {}}
    return Request(scope, receive)


def _result(work: Coroutine[Any, Any, T]) -> T:
    """Of what never waits, without a loop."""
    try:
        work.send(None)
    except StopIteration as over:
        return cast(T, over.value)
    raise RuntimeError("it waits for something")


def _multipart(data: bytes) -> None:
    boundary, _, body = data.partition(b"\n")
    request = _request(body, "multipart/form-data; boundary=" + boundary.decode("latin-1"))
    files = _result(read.read_files(request, ("image/png",), 4, None))
    json.dumps([name for name, _ in files]).encode()


_SETTINGS = Settings()
_BODIES = (schemas.EmbedText, schemas.PredictText)
_QUERIES = (schemas.PredictQuery, schemas.TranscribeQuery, schemas.EmbedImageQuery)


class _Asked:
    """A pool that has room for everything; what a sketch took a body for."""

    def __init__(self) -> None:
        self.model: str | None = ""
        self.inputs = 0

    def find(self, name: str | None, _: str) -> tuple[Any, None]:
        self.model = name
        return SimpleNamespace(card=SimpleNamespace(name="")), None

    def admit(self, _: str, inputs: int, *__: Any) -> Any:
        self.inputs = inputs
        return nullcontext()


def _json(data: bytes) -> object:
    """The first byte tells what for; the rest is JSON, or a query."""
    which, rest = data[0] % 6 if data else 0, data[1:]
    if which < 2:
        pool: Any = _Asked()
        sketch(Kitchen(pool, _SETTINGS, Threads(1)), "text-embedding", bytearray(rest), {"key": None})
        body = _result(read.read_json(_request(rest, "application/json"), _BODIES[which]))
        found = read.texts(body.inputs, _SETTINGS.max_inputs)
        if pool.inputs and (pool.model, pool.inputs) != (body.model, len(found)):
            raise AssertionError(f"a sketch takes it for {pool.inputs} inputs for {pool.model!r}")
    elif which == 2:
        body = finetune._spec(rest.decode("utf-8", "replace"))
    else:
        body = read.read_query(_request(b"", "", rest.replace(b"\n", b"&")), _QUERIES[which - 3])
    is_id(data[:40].decode("latin-1"))
    return " ".join(sorted(body.model_fields_set))


def _tables(data: bytes) -> object:
    root, found = _folder() / "tables", Findings()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    kind, _, body = data.partition(b"\n")
    name = {0: "train.csv", 1: "dataset", 2: "train.jsonl", 3: "train.tsv"}.get(len(kind) % 5, "train-images-idx3-ubyte.gz")
    (root / name).write_bytes(gzip.compress(body, 1) if name.endswith("gz") and kind[:1] != b"r" else body)
    try:
        if name.endswith(".gz"):
            idx.read(root, found)
        else:
            texts.read(root, texts.task_of(root) or "text-embedding", found)
            table.read([root / name], {"file": "file", "transcript": "transcript", "text": "transcript"}, found)
        json.dumps(found.told()).encode()
        return "; ".join(problem.what.partition(":")[0][:30] for problem in found.problems[:2])
    finally:
        shutil.rmtree(root)


SMALL_LETTERS = [
    [(Run(1, 1.0, 2.0, ("scores",)), {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})],
    [(Decode("image-classification", "{}", 1.0), {"item": np.zeros(5000, np.uint8)})],
    [(Samples((1.0,), {"kept": [[0, None]]}), {"0 waveform": np.zeros(9, np.float32)}), (Cancel(3), {})],
    [(Failed(1, "bad_input", "x"), {}), (Done(1, 0.1, 0.2, 3, 0.1), {"a": np.array([], np.int64)})],
]


def _letters() -> Sequence[bytes]:
    return [b"".join(pack(letters)) for letters in SMALL_LETTERS]


_OURS = (HearthError,)
_FRAMES = (FrameError,)
TARGETS: dict[str, Target] = {
    "image": Target(_image, seeds.pictures, _OURS, (b"IDAT", b"\xff\xda", b"\xff\xc4", b"ispe", b"VP8X", b"ANMF", b"acTL"), 90),
    "audio": Target(_audio, seeds.recordings, _OURS, (b"fmt ", b"data", b"moov", b"stts", b"OpusHead", b"fLaC", b"Xing"), 60),
    "archive": Target(_archive, seeds.archives, _OURS, (b"../", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"ustar", b"\0"), 40),
    "card": Target(_card, seeds.cards, _OURS, seeds.CARD_WORDS, 100),
    "frame": Target(
        _frame,
        _letters,
        _FRAMES,
        (b"<f4", b"|O", b"<U8", b"M8", b"run", b"\xc1", b"\x92\0\xcf\x80" + bytes(7), b"\xdc\0\x46" + bytes(70)),
        250,
    ),
    "stream": Target(_stream, _letters, _FRAMES, (), 60),
    "parcels": Target(_parcels, _letters, (*_FRAMES, EOFError), (), 40),
    "multipart": Target(_multipart, seeds.forms, _OURS, seeds.FORM_WORDS, 100),
    "json": Target(_json, seeds.bodies, _OURS, seeds.JSON_WORDS, 180),
    "tables": Target(_tables, seeds.tables, _OURS, (b'"', b"\t", b"split", b"\xff", b"\0", b"label", b"{", b"\r"), 80),
}
"""1000 in all."""

assert sum(target.share for target in TARGETS.values()) == 1000
