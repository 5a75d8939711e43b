"""`hearth tune --as` and the tuner of a job: the same steps from data to a version of a model, here in one process."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.catalogue import read_card
from app.cli import app
from app.errors import Invalid
from app.settings import Settings, jobs_folder
from app.tuning.job import new_id
from app.tuning.process import Cancelled, Tuner
from app.tuning.store import Store
from tests.stack.conftest import wave_of, write_speech
from tests.unit.tuning.test_several_processes import CARD, MODEL, launch

QUICK = ("epochs=6", "batch_size=4", "learning_rate=0.1")


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


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", "shades", *arguments], terminal_width=200)


def test_a_folder_becomes_a_version_and_the_next_one(home: Path, data: Path):
    sets = [part for item in QUICK for part in ("--set", item)]
    for number in (1, 2):
        done = run("--data", str(data), "--as", "tones", *sets)
        assert done.exit_code == 0, (done.output, done.exception)
        assert (
            f"tones@{number}" in done.output and "100.00 % accuracy" in done.output and "train: 8 bright, 8 dark" in done.output
        )
    made = home / "models" / "tones@2"
    told = json.loads((made / "tuned.json").read_text())
    assert told["spec"]["method"] == "full" and told["recipe"]["epochs"] == 6 and told["metrics"]["accuracy"] == 1.0
    assert set(told["metrics"]) == {"accuracy", "loss", "macro_f1"}
    assert read_card(made).about.accuracy == "100.00 % accuracy on the held-out part"
    assert set(told["base_sha256"]) == {"weights"} and len(told["base_sha256"]["weights"]) == 64
    assert (made / "labels.txt").read_text().split() == ["bright", "dark"]
    assert sorted(path.name for path in home.iterdir()) == ["models"], "nothing is left beside"
    assert (data / "dark" / ".DS_Store").exists() and len(list(data.rglob("*.png"))) == 20, "the data is the caller's"


def test_all_that_is_wrong_with_the_data_is_told(home: Path, data: Path):
    (data / "stray.png").write_bytes(b"x")
    (data / "dark" / "broken.png").write_bytes(b"x")
    done = run("--data", str(data), "--as", "tones")
    assert done.exit_code == 1 and not (home / "models" / "tones@1").exists()
    words = str(done.exception)
    assert "stray.png: lies in no class folder" in words and "dark/broken.png" in words
    assert sorted(path.name for path in home.iterdir()) == ["models"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--as", "tones", "--set", "epoch=3"], "unknown field 'epoch'"),
        (["--as", "tones", "--set", "epochs=0"], "epochs"),
        (["--as", "../tones"], "name"),
        (["--as", "tones", "--set", "method=lora"], "tuned by one of: full, head"),
    ],
)
def test_a_wrong_field_is_named(home: Path, data: Path, arguments: list[str], words: str):
    done = run("--data", str(data), *arguments)
    assert done.exit_code == 1 and words in str(done.exception)


def test_two_processes_make_one_version(home: Path, data: Path):
    sets = [f"--set={item}" for item in QUICK]
    said = launch("-m", "app", "tune", "shades", "--data", str(data), "--as", "tones", *sets, HEARTH_HOME=str(home))
    assert said.count("train: 8 bright") == 1 and said.count("written to") == 1
    assert sorted(path.name for path in (home / "models").iterdir()) == ["shades", "tones@1"]


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{home / 'jobs.db'}")
    yield store
    store.close()


def a_job(home: Path, store: Store, data: Path, base: str, **spec: Any) -> Tuner:
    id = new_id()
    folder = jobs_folder(home) / id
    folder.mkdir(parents=True)
    shutil.make_archive(str(folder / "packed"), "zip", data)
    (folder / "packed.zip").rename(folder / "dataset")
    values = dict(item.split("=") for item in QUICK) | spec
    return Tuner(Settings(home=home, threads=1), store, store.add(id, {"name": "tones", "base": base, **values}))


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


def test_a_job_keeps_its_base_when_the_catalogue_does_not(home: Path, store: Store, data: Path):
    shutil.copytree(home / "models" / "shades", home / "models" / "shades@1")
    tuner = a_job(home, store, data, "shades@1")
    tuner._folder.joinpath("base").mkdir()
    (home / "models" / "shades@1").rename(tuner._folder / "base" / "shades@1")
    again = Tuner(tuner._settings, store, tuner._job)
    again.check()
    again.train()
    job = store.get(tuner._job.id)
    assert job.state == "succeeded" and job.result["version"] == 1
    assert len(job.result["data_sha256"]) == 64 and job.result["recipe"]["precision"] == "fp32"


def test_a_job_that_is_cancelled_while_it_is_written_makes_no_version(home: Path, store: Store, data: Path):
    tuner = a_job(home, store, data, "shades")
    tuner.check()
    move = store.move
    store.move = lambda id, to, **more: move(id, "cancelled") and False if to == "succeeded" else move(id, to, **more)  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        tuner.train()
    assert [path.name for path in (home / "models").iterdir()] == ["shades"]


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
