"""What `hearth serve` prints at its start."""

from __future__ import annotations

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
