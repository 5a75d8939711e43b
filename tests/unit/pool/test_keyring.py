"""What the supervisor makes of the file of keys: told once, kept while it is broken."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from app import keys
from app.errors import Invalid
from app.pool import keyring
from app.pool.keyring import Keyring
from app.settings import Settings


class House:
    def __init__(self) -> None:
        self.published = 0

    def publish(self) -> None:
        self.published += 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    keys.add(tmp_path / "keys.jsonl", "first", "admin")
    return tmp_path / "keys.jsonl"


def ring_of(file: Path | str, home: Path) -> tuple[Keyring, House]:
    house: Any = House()
    return Keyring(Settings(home=home, keys_file=str(file)), house), house


async def test_keys_are_told_when_they_change_and_not_when_nothing_did(file: Path, tmp_path: Path):
    ring, house = ring_of(file, tmp_path)
    await ring.reload()
    assert ring.text == file.read_text() and house.published == 1
    await ring.reload()
    file.touch()
    await ring.reload()
    assert house.published == 1
    key, _ = keys.add(file, "second", "infer")
    await ring.reload()
    assert house.published == 2 and key.sha256 in (ring.text or "")
    keys.revoke(file, "first")
    await ring.reload()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], len(line["added"]), len(line["removed"])) for line in lines] == [
        ("keys reload", 1, 0), ("keys reload", 1, 0), ("keys reload", 0, 1),
    ]  # fmt: skip
    assert key.sha256 not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize("harm", [lambda file: file.write_text("{broken"), Path.unlink, lambda file: file.write_bytes(b"\xff")])
async def test_a_broken_file_changes_nothing_and_is_told_loudly_but_once(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, harm: Any
):
    ring, house = ring_of(file, tmp_path)
    assert ring._look(file)
    before = ring.text
    harm(file)
    with caplog.at_level(logging.WARNING, "hearth"):
        assert not ring._look(file) and not ring._look(file)
        assert ring.text == before and house.published == 0
        assert len(caplog.records) == 1 and "THE KEYS STAY AS THEY WERE" in caplog.text
        await ring.reload()
        assert len(caplog.records) == 2, "whoever asks hears it again"
    file.unlink(missing_ok=True)
    keys.add(file, "mended", "admin")
    assert ring._look(file) and ring.text == file.read_text()


async def test_a_file_that_could_not_be_read_is_read_when_its_owner_changes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> str:
        raise Invalid("Permission denied")

    ring, _ = ring_of(file, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(keyring, "read", refuse)
        assert not ring._look(file)
    assert not ring._look(file), "it is as it was"
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:  # until the next tick of the disk's clock
        os.chown(file, os.getuid(), os.getgid())
    assert ring._look(file) and ring.text == file.read_text()


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """It has not changed since; whoever was revoked in it would stay."""

    def none_left(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    ring, _ = ring_of(file, tmp_path)
    assert ring._look(file)
    keys.revoke(file, "first")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", none_left)
        for _ in range(3):
            assert not ring._look(file)
    assert "".join(record.message for record in caplog.records).count("THE KEYS STAY AS THEY WERE") == 1
    assert ring._look(file) and ring.text == file.read_text()
    assert not ring._look(file)
    file.write_text("{broken")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", none_left)
        assert not ring._look(file)
    caplog.clear()
    assert not ring._look(file) and not ring._look(file)
    assert len(caplog.records) == 1, "what is wrong with it is another thing, and told, too"


async def test_keys_that_are_read_later_than_it_waited_are_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where no thread can be started, one that is busy may still do it."""

    async def none_left(look: Any, path: Path, **_: Any) -> None:
        look(path)
        raise RuntimeError("can't start new thread")

    ring, house = ring_of(file, tmp_path)
    monkeypatch.setattr(asyncio, "to_thread", none_left)
    await ring.reload()
    assert ring.text and house.published == 1


async def test_it_is_looked_at_by_itself(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keyring, "_LOOK_S", 0.01)
    ring, house = ring_of(file, tmp_path)
    running = asyncio.create_task(ring.run())
    async with asyncio.timeout(10):
        while house.published < 1:  # noqa: ASYNC110  nobody sets an event
            await asyncio.sleep(0.005)
        keys.add(file, "second", "infer")
        while house.published < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    running.cancel()


async def test_where_no_keys_are_wanted_nothing_runs(tmp_path: Path):
    ring, house = ring_of("", tmp_path)
    await ring.run()
    await ring.reload()
    assert ring.text is None and house.published == 0


async def test_a_file_that_lets_nobody_or_everybody_in_is_warned_of(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    keys.revoke(file, "first")
    file.chmod(0o666)
    ring, _ = ring_of(file, tmp_path)
    with caplog.at_level(logging.WARNING, "hearth"):
        await ring.reload()
    assert "nobody gets in" in caplog.text and "chmod 600" in caplog.text


async def test_of_two_looks_at_once_the_later_one_is_believed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A look that had read the file before a key was revoked in it told of it last, and the key held again."""
    ring, _ = ring_of(file, tmp_path)
    has_read, may_tell = threading.Event(), threading.Event()

    def read(path: Path) -> str:
        text = keys.read(path)
        if not has_read.is_set():
            has_read.set()
            assert may_tell.wait(30)
        return text

    monkeypatch.setattr(keyring, "read", read)
    first = asyncio.create_task(ring._renew(file))
    await asyncio.to_thread(has_read.wait, 30)
    keys.revoke(file, "first")
    second = asyncio.create_task(ring.reload())
    await asyncio.wait([second], timeout=0.3)
    may_tell.set()
    await asyncio.gather(first, second)
    assert ring.text == file.read_text()
