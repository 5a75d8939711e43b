"""What `hearth serve` prints at its start."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.settings import Settings
from app.welcome import announce


def test_why_a_model_failed_is_shown_as_it_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    why = "model.py: [/INST] is no token :dog:"
    model = SimpleNamespace(card=SimpleNamespace(task="text-embedding"), state="failed", why=why, default=True)
    roster: Any = SimpleNamespace(models={"toy": model})
    announce(Settings(home=tmp_path), roster, 80)
    shown = capsys.readouterr().out
    assert why in shown and "failed" in shown and "[/]" not in shown


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "gone",
    ["terminal", "pipe", pytest.param("disk", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device"))],
)
def test_a_server_that_nobody_hears_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, unbuffered: bool
):
    """Each write fails, or with a buffer the flush; and what the buffer keeps would be written once more at the end."""
    with monkeypatch.context() as patch, closed(gone, unbuffered) as stdout:
        patch.setattr(sys, "stdout", stdout)
        announce(Settings(home=tmp_path), NOBODY, 80)
        stdout.write("and whatever comes later\n")
        stdout.flush()


def test_a_server_without_an_output_serves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = io.StringIO()
    ended.close()
    for nothing in (None, ended):
        monkeypatch.setattr(sys, "stdout", nothing)
        announce(Settings(home=tmp_path), NOBODY, 80)


def test_letters_that_an_output_does_not_know_are_not_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    model = SimpleNamespace(card=SimpleNamespace(task="text-embedding"), state="failed", why="müde", default=True)
    roster: Any = SimpleNamespace(models={"toy": model})
    announce(Settings(home=tmp_path), roster, 80)
    assert b"m?de" in raw.getvalue()


NOBODY: Any = SimpleNamespace(models={})


def closed(gone: str, unbuffered: bool) -> io.TextIOWrapper:
    """An output that takes nothing; without a buffer, as PYTHONUNBUFFERED makes it."""
    if gone == "disk":
        theirs = os.open("/dev/full", os.O_WRONLY)
    else:
        ours, theirs = os.openpty() if gone == "terminal" else os.pipe()
        os.close(ours)
    raw = io.FileIO(theirs, "w")
    return io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), write_through=unbuffered)  # type: ignore[type-var]
