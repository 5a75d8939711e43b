"""Changes are written down, by whom, and what is in the way of that harms nobody."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path

import pytest

from app import audit


def told(home: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]


def test_a_change_is_one_line_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "hearth"):
        audit.note(tmp_path, "POST /models/x\n/load", "done", key="12345678", address="10.0.0.1", status=200)
    (line,) = told(tmp_path)
    assert {name: line[name] for name in ("key", "address", "what", "outcome", "status")} == {
        "key": "12345678", "address": "10.0.0.1", "what": "POST /models/x\n/load", "outcome": "done", "status": 200,
    }  # fmt: skip
    assert line["time"].endswith("+00:00") and "request_id" in line
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert "12345678" in caplog.text


def test_it_is_put_aside_when_it_is_full_and_no_line_is_lost_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "_MOST_BYTES", 2000)
    for number in range(100):
        audit.note(tmp_path, str(number), "done")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    (tmp_path / "audit.jsonl").touch()  # it may just have been put aside
    whats = [
        json.loads(line)["what"]
        for name in ("audit.1.jsonl", "audit.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert whats == [str(number) for number in range(100 - len(whats), 100)] and len(whats) > 5


def test_a_full_disk_costs_a_line_in_the_log_and_nothing_else(small_disk: Path, caplog: pytest.LogCaptureFixture):
    audit.note(small_disk, "before", "done")
    with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(1000))
    (small_disk / "audit.jsonl").write_bytes(b"x" * 4000 + b"\n")  # the next line begins in the last page and does not end there
    with caplog.at_level(logging.INFO, "hearth"):
        audit.note(small_disk, "POST /models/x/load", "done")
        audit.note(small_disk, "POST /models/x/load", "done")
    assert "No space left" in caplog.text and "POST /models/x/load" in caplog.text
    assert (small_disk / "audit.jsonl").read_bytes() == b"x" * 4000 + b"\n", "no half of a line"


def test_a_home_that_is_none_does_not_matter_either(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    audit.note(tmp_path / "file", "x", "done")
    assert "cannot be written" in caplog.text


def test_a_home_that_is_new_is_made(tmp_path: Path):
    audit.note(tmp_path / "new" / "home", "x", "done")
    assert told(tmp_path / "new" / "home")
