"""A home with one small model in it, and pictures to tune it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.tuning.store import Store
from tests.unit.tuning.test_several_processes import CARD, MODEL


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    base = home / "models" / "shades"
    base.mkdir(parents=True)
    (base / "card.toml").write_text(CARD)
    (base / "model.py").write_text(MODEL)
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 2)
    save_file({f"1.{name}": value for name, value in layer.state_dict().items()}, base / "weights.safetensors")
    monkeypatch.setenv("HEARTH_HOME", str(home))
    return home


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for label, low in (("dark", 0), ("bright", 150)):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), low + 10 * number).save(folder / label / f"{number}.png")
    (folder / "dark" / ".DS_Store").write_bytes(b"x")
    return folder


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{home / 'jobs.db'}")
    yield store
    store.close()
