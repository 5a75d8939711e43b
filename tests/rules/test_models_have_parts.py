"""Every folder in models/ is complete: card, sample, expected answer, and for a starter how it was made."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.rules.source import ROOT

MODELS = ROOT / "models"
MAX_WEIGHTS_BYTES = 8 * 1024 * 1024
# A starter must say what it can do, on what, and how anyone gets the same.
STARTER_WORDS = ("accuracy", "data", "licence", "reproduce")


def missing(folder: Path) -> list[str]:
    card = folder / "card.toml"
    if not card.is_file():
        return ["card.toml"]
    values = tomllib.loads(card.read_text(encoding="utf-8"))
    found = []
    samples = [path for path in folder.glob("sample.*") if path.stat().st_size > 0]
    if len(samples) != 1:
        found.append(f"one sample.* (there are {len(samples)})")
    expected = folder / "expected.json"
    if not expected.is_file():
        found.append("expected.json")
    elif not json.loads(expected.read_text(encoding="utf-8")):
        found.append("something in expected.json")
    if values.get("starter"):
        about = values.get("about", {})
        # Weights out of a pinned package were trained by others: they need their source named, not our recipe.
        words = [word for word in STARTER_WORDS if word != "reproduce" or values["source"]["kind"] != "package"]
        found += [f"about.{word}" for word in words if not about.get(word)]
    if values["source"]["kind"] in {"file", "module"} and not list(folder.glob("*.safetensors")):
        found.append("weights (*.safetensors)")
    return found


def heavy(folder: Path) -> list[str]:
    return [
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size > MAX_WEIGHTS_BYTES
    ]


def folders() -> list[Path]:
    return sorted(path for path in MODELS.iterdir() if path.is_dir() and path.name != "__pycache__")


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_a_model_is_complete(folder: Path) -> None:
    assert missing(folder) == []
    assert heavy(folder) == []
    assert not [path.name for path in folder.rglob("*") if path.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}], (
        "weights are safetensors"
    )


def test_there_are_models() -> None:
    assert len(folders()) >= 3


def test_there_is_a_starter_for_each_family() -> None:
    cards = [tomllib.loads((folder / "card.toml").read_text()) for folder in folders() if (folder / "card.toml").is_file()]
    tasks = {card["task"] for card in cards if card.get("starter")}
    assert {"image-classification", "text-embedding", "speech-recognition"} <= tasks


CARD = 'task = "x"\nstarter = true\nsource = { kind = "module", entry = "X" }\n[about]\nlicence = "MIT"\ndata = "d"\n'


def test_the_rule_sees_what_is_missing(tmp_path: Path) -> None:
    assert missing(tmp_path) == ["card.toml"]
    (tmp_path / "card.toml").write_text(CARD)
    assert missing(tmp_path) == [
        "one sample.* (there are 0)", "expected.json", "about.accuracy", "about.reproduce", "weights (*.safetensors)",
    ]  # fmt: skip
    (tmp_path / "card.toml").write_text(CARD + 'accuracy = "1"\nreproduce = "hearth tune x"\n')
    (tmp_path / "sample.png").write_bytes(b"x")
    (tmp_path / "expected.json").write_text('{"label": "x"}')
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    assert missing(tmp_path) == []
    assert heavy(tmp_path) == []
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.truncate(MAX_WEIGHTS_BYTES + 1)
    assert len(heavy(tmp_path)) == 1
