"""Networks that callers bring: without weights, with any end, and what they are told where that cannot be."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.catalogue import read_card
from app.cli import app
from app.errors import Invalid
from app.tuning.store import Store
from tests.stack.conftest import wave_of, write_speech
from tests.unit.tuning.test_several_processes import CARD
from tests.unit.tuning.test_tuner import a_job

FIRST = """from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x):
        return self.layers(x)
"""


def characters(folder: Path) -> Path:
    """Four idx files: a bright band, the lower the greater its number."""
    folder.mkdir()
    for part, count in (("train", 200), ("t10k", 40)):
        targets = np.arange(count, dtype=np.uint8) % 10
        pictures = np.zeros((count, 28, 28), np.uint8)
        for picture, target in zip(pictures, targets, strict=True):
            picture[2 * target : 2 * target + 3] = 200
        for what, values in (("images-idx3", pictures), ("labels-idx1", targets)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


def own_network(home: Path, code: str) -> None:
    """A card and a `model.py`, and nothing else."""
    folder = home / "models" / "first"
    folder.mkdir()
    (folder / "card.toml").write_text(CARD.replace("[8, 8], crop = 8", "[28, 28], crop = 28"))
    (folder / "model.py").write_text(code)


def test_the_network_of_a_first_tutorial_needs_no_weights(home: Path, store: Store, tmp_path: Path):
    own_network(home, FIRST)
    tuner = a_job(home, store, characters(tmp_path / "idx"), "first", start="fresh", epochs=10, batch_size=20, learning_rate=0.02)
    tuner.check()
    tuner.train()
    result = store.get(tuner._job.id).result
    assert result["metrics"]["accuracy"] == 1.0 and result["base_sha256"] == {}
    sets = ("start=fresh", "epochs=1", "batch_size=20")
    arguments = ["tune", "first", "--data", str(tmp_path / "idx"), "--as", "again", *(f"--set={one}" for one in sets)]
    assert CliRunner().invoke(app, arguments).exit_code == 0 and (home / "models" / "again@1" / "weights.safetensors").exists()


PICTURES = """from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


def photographs(folder: Path) -> Path:
    """Dark and light ones, of 224 pixels."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label, most in (("dark", 90), ("light", 250)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(most - 60, most, (224, 224, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{number}.png")
    return folder


def test_a_job_tells_which_sizes_its_pictures_had(home: Path, store: Store, tmp_path: Path):
    own_network(home, PICTURES)
    card = CARD.replace("[8, 8], crop = 8", "[224, 224], crop = 224")
    (home / "models" / "first" / "card.toml").write_text(card)
    data, told = photographs(tmp_path / "photographs"), {}
    for name, values in {
        "small": {"small_first": True},
        "as they are": {},
        "even": {"small_first": True, "augment": False},
    }.items():
        tuner = a_job(home, store, data, "first", start="fresh", epochs=3, batch_size=8, **values)
        tuner.check()
        tuner.train()
        told[name] = store.get(tuner._job.id).result["picture_sides"]
    assert told == {"small": [160, 160], "as they are": [], "even": [160, 160]}


def test_a_speech_network_begins_afresh_without_weights(home: Path, store: Store, tmp_path: Path):
    base, data = home / "models" / "ears", tmp_path / "sounds"
    write_speech(base)
    (base / "model.safetensors").unlink()
    data.mkdir()
    for number in range(8):
        sound = 0.3 * np.sin(np.arange(8000) * (0.1 if number % 2 else 1.0) + number)
        (data / f"{number}.wav").write_bytes(wave_of(sound))
    rows = "".join(f"{number}.wav,{'AB'[number % 2]}\n" for number in range(8))
    (data / "transcripts.csv").write_text("file,transcript\n" + rows)
    tuner = a_job(home, store, data, "ears", start="fresh", epochs=1, batch_size=4)
    tuner.check()
    tuner.train()
    job = store.get(tuner._job.id)
    assert job.state == "succeeded" and set(job.result["base_sha256"]) == {"config.json", "vocab.json"}
    (base / "vocab.json").unlink()
    with pytest.raises(Invalid, match=r"ears: its vocab.json is missing"):
        a_job(home, store, data, "ears", start="fresh").check()


CONVOLUTION = """from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.whole = nn.Conv2d(1, {classes}, {side})

    def forward(self, x):
        return self.whole(x).flatten(1)
"""


def test_a_network_with_as_many_outputs_as_classes_may_end_in_anything(home: Path, store: Store, tmp_path: Path):
    own_network(home, CONVOLUTION.format(classes=10, side=28))
    tuner = a_job(home, store, characters(tmp_path / "idx"), "first", start="fresh", epochs=10, batch_size=20, learning_rate=0.02)
    tuner.check()
    tuner.train()
    assert store.get(tuner._job.id).result["metrics"]["accuracy"] == 1.0
    assert "classes" not in read_card(home / "models" / "tones@1").source.model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            CONVOLUTION.format(classes=9, side=28),
            "made one for 10 classes, and only an nn.Linear can be; end the network in nn.Linear",
        ),
        (CONVOLUTION.format(classes=10, side=27), r"must give scores \[1, 10\], by its last nn.Linear|only an nn.Linear can be"),
        (FIRST.replace("784, 128", "700, 128"), r"a picture \[1, 1, 28, 28\] must give .*raised RuntimeError: .*mat1 and mat2"),
        (
            FIRST.replace("self.layers =", "self.layers, self.unused =").replace("10))", "9)), nn.Linear(2, 2)"),
            "define the classifier last",
        ),
    ],
    ids=["convolution", "wrong size", "raises", "another layer last"],
)
def test_a_network_that_cannot_be_given_the_classes_is_told_so(home: Path, store: Store, tmp_path: Path, code: str, words: str):
    own_network(home, code)
    tuner = a_job(home, store, characters(tmp_path / "idx"), "first", start="fresh")
    tuner.check()
    with pytest.raises(Invalid, match=words):
        tuner.train()


def test_weights_whose_classifier_is_no_linear_layer_are_told_so(home: Path, store: Store, data: Path):
    base = home / "models" / "shades"
    (base / "model.py").write_text(CONVOLUTION.format(classes=2, side=8))
    save_file({"whole.weight": torch.zeros(2, 1, 8, 8), "whole.bias": torch.zeros(2)}, base / "weights.safetensors")
    tuner = a_job(home, store, data, "shades")
    tuner.check()
    with pytest.raises(Invalid, match='or give it 2 outputs of its own and start = "fresh"'):
        tuner.train()
