"""What `hearth serve` prints at its start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.__main__ import _drop_what_nobody_reads
from app.settings import Settings
from app.welcome import announce


def test_why_a_model_failed_is_shown_as_it_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    why = "model.py: [/INST] is no token :dog:"
    model = SimpleNamespace(card=SimpleNamespace(task="text-embedding"), state="failed", why=why, default=True)
    roster: Any = SimpleNamespace(models={"toy": model})
    announce(Settings(home=tmp_path), roster, 80)
    shown = capsys.readouterr().out
    assert why in shown and "failed" in shown and "[/]" not in shown


def test_a_server_whose_terminal_is_closed_while_it_announces_itself_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    terminal, theirs = os.openpty()
    os.close(terminal)
    with monkeypatch.context() as patch, open(theirs, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        roster: Any = SimpleNamespace(models={})
        announce(Settings(home=tmp_path), roster, 80)
        _drop_what_nobody_reads()
        stdout.write("and whatever comes later\n")
