"""Bombs, polyglots, damage and injection: each gets its clear answer within its bounds, and its neighbours get theirs."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import socket
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from app.errors import BadInput, HearthError, TooLarge
from app.tasks.findings import Findings
from app.tasks.image import idx
from app.tuning.archive import Bounds, unpack
from tests.stack import hostile
from tests.stack.conftest import Clients, Server, picture, wave

CLEAR = {"bad_input": 400, "too_large": 413, "unsupported_media": 415, "invalid": 422}
IMAGE, SOUND = "/predict/image?model=toy", "/transcribe?model=toy-speech"


class Neighbours(Clients):
    """Ask for a picture and a recording, over and over, and compare."""

    def _run(self, url: str, number: int) -> None:
        path, body = ((IMAGE, hostile.small("JPEG")), (SOUND, wave(0.5)))[number % 2]
        with httpx.Client(base_url=url, timeout=60) as http:
            right = said(http.post(path, content=body))
            while not self._stop.is_set():
                answer = http.post(path, content=body)
                if answer.status_code != 200 or said(answer) != right:
                    self.wrong.append(answer.text)


def said(answer: httpx.Response) -> str:
    """What the answer means: scores differ in the seventh digit."""
    (result,) = answer.json()["results"]
    return str(result["text"] if "text" in result else result["predictions"][0]["label"])


@pytest.fixture(scope="module", autouse=True)
def neighbours(server: Server) -> Iterator[None]:
    with Neighbours(server, 2) as clients:
        yield
    assert not clients.wrong


def send(server: Server, path: str, raw: bytes, **query: Any) -> httpx.Response:
    return server.http.post(path, content=raw, headers={"content-type": "application/octet-stream"}, params=None, **query)


def clear(answer: httpx.Response) -> str:
    """The code of a refusal that a caller can understand."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert CLEAR.get(body["code"]) == answer.status_code, body
    assert body["detail"] and "Traceback" not in body["detail"] and "/work" not in body["detail"]
    return str(body["code"])


@pytest.mark.parametrize("name", hostile.PICTURES_TOO_LARGE)
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(server: Server, name: str):
    with little_memory(server):
        assert clear(send(server, IMAGE, hostile.PICTURES_TOO_LARGE[name])) == "too_large"


@pytest.mark.parametrize("name", hostile.PICTURES_REFUSED)
def test_what_is_no_picture_or_a_broken_one_is_refused(server: Server, name: str):
    assert clear(send(server, IMAGE, hostile.PICTURES_REFUSED[name])) in ("bad_input", "unsupported_media", "too_large")


@pytest.mark.parametrize("name", hostile.PICTURES_TAKEN)
def test_a_picture_that_is_also_something_else_is_taken_as_a_picture(server: Server, name: str):
    answer = send(server, IMAGE, hostile.PICTURES_TAKEN[name])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", hostile.PICTURES_WITH_A_BOMB)
def test_a_bomb_beside_the_pixels_is_told_or_not_set_off(server: Server, name: str):
    bomb = hostile.PICTURES_WITH_A_BOMB[name]()
    with little_memory(server):
        answer = send(server, IMAGE, bomb)
    assert answer.status_code == 200 or clear(answer) in ("bad_input", "too_large")


@contextmanager
def little_memory(server: Server) -> Iterator[None]:
    """No decoder takes 100 MiB more meanwhile than one had at rest."""
    assert send(server, IMAGE, hostile.small("PNG")).status_code == 200
    for reader in ours(server, "hearth decode "):  # what an earlier test took is forgotten
        with suppress(FileNotFoundError, ProcessLookupError):
            Path(f"/proc/{reader.pid}/clear_refs").write_text("5")
    before = most_memory(server)
    yield
    after = most_memory(server)
    assert before and after
    usual = max(before.values())
    assert all(most < before.get(pid, usual) + (100 << 20) for pid, most in after.items()), (before, after)


def most_memory(server: Server) -> dict[int, int]:
    """Decoder → the most memory that it had since its mark was reset (VmHWM and clear_refs of proc(5))."""
    found = {}
    for reader in ours(server, "hearth decode "):
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{reader.pid}/status").read_text()
            found[reader.pid] = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return found


@pytest.mark.parametrize("name", hostile.RECORDINGS_TOO_LONG)
def test_a_recording_of_hours_is_refused(server: Server, name: str):
    raw = hostile.RECORDINGS_TOO_LONG[name]()
    with little_memory(server):
        assert clear(send(server, SOUND, raw)) == "too_large"


@pytest.mark.parametrize("name", hostile.RECORDINGS_REFUSED)
def test_what_is_no_recording_is_refused(server: Server, name: str):
    assert clear(send(server, SOUND, hostile.RECORDINGS_REFUSED[name])) in ("bad_input", "unsupported_media")


@pytest.mark.parametrize("name", hostile.RECORDINGS_TAKEN)
def test_a_recording_that_is_also_something_else_is_taken_as_a_recording(server: Server, name: str):
    assert send(server, SOUND, hostile.RECORDINGS_TAKEN[name]).status_code == 200


def ours(server: Server, name: str) -> list[psutil.Process]:
    """The server's processes whose names begin so, for as long as they live."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if child.name().startswith(name) else []
    return found


def test_no_decoder_has_the_requests_of_others(server: Server):
    """They are in memory that outlives a frontend, and may hold keys."""
    assert send(server, IMAGE, hostile.small("JPEG")).status_code == 200
    readers = [*ours(server, "hearth decoders"), *ours(server, "hearth decode ")]
    assert len(readers) > 1
    for reader in readers:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            assert "journal" not in Path(f"/proc/{reader.pid}/maps").read_text()


def test_decoders_that_somebody_kills_lose_nothing(server: Server):
    """Beside the neighbours, whose answers are compared."""
    body = hostile.small("JPEG")
    for _ in range(20):
        for decoder in ours(server, "hearth decode "):
            with suppress(psutil.NoSuchProcess):
                decoder.kill()
        assert send(server, IMAGE, body).status_code == 200
    nursery = min(ours(server, "hearth decoders"), key=psutil.Process.create_time)  # its child is called so until it has begun
    nursery.kill()
    psutil.wait_procs([nursery], 10)
    assert send(server, IMAGE, body).status_code == 200


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    **{
        kind: (IMAGE, lambda kind=kind: hostile.small(kind))  # type: ignore[misc]
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    },
    "WAV": (SOUND, lambda: wave(0.3)),
    "FLAC": (SOUND, lambda: hostile.sound("flac", "flac")),
    "MP3": (SOUND, lambda: hostile.sound("mp3", "libmp3lame")),
    "AIFF": (SOUND, lambda: hostile.sound("aiff", "pcm_s16be")),
    "ADTS": (SOUND, lambda: hostile.sound("adts", "aac")),
    "Ogg": (SOUND, lambda: hostile.sound("ogg", "libopus", rate=48_000)),
    "M4A": (SOUND, lambda: hostile.sound("mp4", "aac")),
    "WebM": (SOUND, lambda: hostile.sound("webm", "libopus", rate=48_000)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_borne_or_told(server: Server, kind: str):
    path, make = KINDS[kind]
    raw, chance = make(), random.Random(kind)
    assert send(server, path, raw).status_code == 200
    for _ in range(12):
        torn = bytearray(raw[: chance.randrange(1, len(raw))])
        flipped = bytearray(raw)
        for _ in range(chance.randrange(1, 30)):
            flipped[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        for damaged in (torn, flipped):
            answer = send(server, path, bytes(damaged))
            assert answer.status_code == 200 or clear(answer), answer.text


NAMES = ["../../etc/passwd", "..\\..\\x", "a\0b", "a\r\nSet-Cookie: x=1", "<script>", "\u202egpj.exe", "é" * 300, "/dev/null", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_file_is_only_told_back(server: Server, name: str):
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
    body = part + picture(1, 2, 3) + b"\r\n--b--\r\n"
    answer = server.http.post(IMAGE, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert "set-cookie" not in answer.headers
    if answer.status_code != 200:
        clear(answer)
    assert answer.headers["content-type"] in ("application/json", "application/problem+json")


MODELS = [
    "../..",
    "..%2f..",
    "%2e%2e/%2e%2e",
    "....//",
    "toy/../../x",
    "toy%00",
    "toy%0d%0aX-A: b",
    "a" * 5000,
    "$(id)",
    "@",
    "toy@x",
]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_kind_of_name_is_not_there(server: Server, name: str):
    url = urlsplit(server.url)
    lines = (
        f"GET /models/{name}",
        f"POST /models/{name}/load",
        f"POST /predict/image?model={name}",
        f"GET /docs/static/{name}/x",
    )
    for line in lines:
        with socket.create_connection((url.hostname, url.port), timeout=30) as sender:
            sender.sendall(
                f"{line.replace(' b', '%20b')} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda: sender.recv(1 << 16), b""))
        status = int(answer.split()[1])
        assert 400 <= status < 500 or b"\r\nlocation: http://x/models/" in answer, answer
        assert b"\r\nX-A:" not in answer and b"etc" not in answer


@pytest.mark.parametrize("id", [b"a\tb", b"x" * 5000, "é".encode(), b"<script>", b"a b", b"{}", b"a;b,c"])
def test_a_strange_request_id_is_replaced(server: Server, id: bytes):
    answer = server.http.get("/models", headers=[(b"x-request-id", id)])
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].isalnum()


def test_a_job_with_a_name_of_another_kind_is_refused(server: Server):
    for name in ("../..", "a/b", "x\0", "@", "A"):
        for spec in ({"name": name, "base": "toy"}, {"name": "new", "base": name}):
            answer = server.http.post("/finetune", data={"spec": json.dumps(spec)}, files={"dataset": ("../../x", b"x")})
            assert clear(answer) in ("invalid", "bad_input")
    assert not [path for path in server.home.glob("jobs/*") if path.is_dir()]


# Archives, which a job unpacks: `app/tuning/archive.py`, where it is called.

ZEROS = bytes(200 << 20)


def zip_bomb() -> bytes:
    return hostile.zipped({"a.csv": ZEROS})


def nested() -> bytes:
    return hostile.zipped({f"{n}.zip": zip_bomb() for n in range(3)})


def overlapping() -> bytes:
    """Two hundred entries for one stream of data (D. Fifield, "A better zip bomb")."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.csv", bytes(1 << 20))
        for n in range(1, 200):
            info = zipfile.ZipInfo(f"{n}.csv")
            first = archive.infolist()[0]
            info.compress_type, info.CRC, info.header_offset = first.compress_type, first.CRC, first.header_offset
            info.compress_size, info.file_size = first.compress_size, first.file_size
            archive.filelist.append(info)
    return out.getvalue()


def tarred(pack: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = len(ZEROS)
        archive.addfile(info, io.BytesIO(ZEROS))
    return pack(out.getvalue())


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "zip": zip_bomb,
    "overlapping": overlapping,
    "tar.gz": lambda: tarred(lambda raw: gzip.compress(raw, 6)),
    "tar.bz2": lambda: tarred(lambda raw: __import__("bz2").compress(raw)),
    "tar.xz": lambda: tarred(lambda raw: lzma.compress(raw, preset=0)),
    "tar.lzma": lambda: tarred(lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE, preset=0)),
    "zip of bzip2": lambda: hostile.zipped({"a.csv": ZEROS}, zipfile.ZIP_BZIP2),
    "zip of LZMA": lambda: hostile.zipped({"a.csv": ZEROS}, zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_bursts_is_stopped(tmp_path: Path, kind: str):
    (tmp_path / "packed").write_bytes(ARCHIVES[kind]())
    (tmp_path / "into").mkdir()
    with pytest.raises(HearthError) as error:
        unpack(tmp_path / "packed", tmp_path / "into", Bounds(bytes=64 << 20))
    assert isinstance(error.value, TooLarge) or kind in ("overlapping", "zip of bzip2", "zip of LZMA")
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) <= 66 << 20


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "LZMA"])
def test_a_zip_that_bursts_bursts_nowhere(tmp_path: Path, packing: int):
    """zipfile unpacks a megabyte of these at once: 400 bytes become 300 MB in memory before anybody can count them."""
    (tmp_path / "packed").write_bytes(hostile.zipped({"a.csv": bytes(64 << 20)}, packing))
    (tmp_path / "into").mkdir()
    with pytest.raises(BadInput, match=r"a\.csv is packed by (bzip2|lzma); pack it by deflate"):
        unpack(tmp_path / "packed", tmp_path / "into")


@pytest.mark.parametrize(("name", "kind"), [("../a.csv", tarfile.REGTYPE), ("a.csv", b"Z")], ids=["outside", "strange"])
def test_a_tar_is_not_unpacked_past_its_limits_to_refuse_a_member(tmp_path: Path, name: str, kind: bytes):
    info = tarfile.TarInfo(name)
    info.size, info.type = 64 << 20, kind
    (tmp_path / "packed").write_bytes(gzip.compress(info.tobuf() + bytes(info.size + 1024), 6))
    (tmp_path / "into").mkdir()
    with pytest.raises(TooLarge):
        unpack(tmp_path / "packed", tmp_path / "into", Bounds(bytes=16 << 20))


def test_a_tar_is_not_unpacked_past_its_limits_to_read_headers(tmp_path: Path):
    """Of the long names before a member the last one counts."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 60_000
    headers = (long.tobuf() + b"a" * long.size + bytes(-long.size % 512)) * 100
    member = tarfile.TarInfo(".a")
    (tmp_path / "packed").write_bytes(gzip.compress((headers + member.tobuf()) * 4 + bytes(1024)))
    (tmp_path / "into").mkdir()
    with pytest.raises(TooLarge):
        unpack(tmp_path / "packed", tmp_path / "into", Bounds(bytes=4 << 20))


@pytest.mark.parametrize("told", [8, 256 << 20], ids=["its header says little", "its header says all"])
def test_an_idx_file_that_bursts_is_stopped(tmp_path: Path, told: int):
    """Of an archive it is one member, which stays packed until it is read here."""
    head = struct.pack(">HBBIII", 0, 8, 3, 1, 1, told)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(256 << 20), 6))
    found = Findings()
    tracemalloc.start()
    assert idx.read(tmp_path, found) == {}
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20
    assert "its header says" in found.problems[0].what


def test_archives_in_an_archive_stay_packed(tmp_path: Path):
    (tmp_path / "packed").write_bytes(nested())
    (tmp_path / "into").mkdir()
    assert unpack(tmp_path / "packed", tmp_path / "into") == 3
    assert sum(path.stat().st_size for path in (tmp_path / "into").rglob("*")) < 1 << 20
