"""`hearth tune --as` and the tuner of a job: the same steps from data to a version of a model, here in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from app.cli import app
from app.settings import Settings, jobs_folder
from app.tuning.job import new_id
from app.tuning.process import Cancelled, Tuner
from app.tuning.room import sweep
from app.tuning.store import Store
from tests.conftest import ROOT
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
    assert told["spec"]["method"] == "full" and told["recipe"]["epochs"] == 6 and told["metrics"] == {"accuracy": 1.0}
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


def test_what_a_tune_left_that_was_killed_is_swept_away_by_the_next(home: Path, data: Path):
    program = "import sys, time; from pathlib import Path; from app.tuning.room import held\nwith held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    for name in ("tune-living", "tune-dead", "tune-young", "tune-mine"):
        (home / name / "data").mkdir(parents=True)
        (home / name / "data" / "file").touch()
        if name != "tune-mine":
            (home / name / "lock").touch()
    holder = [sys.executable, "-c", program, home / "tune-living"]
    with subprocess.Popen(holder, cwd=ROOT, stdout=subprocess.PIPE) as living:
        assert living.stdout and living.stdout.readline()
        for name in ("tune-living", "tune-dead"):
            os.utime(home / name / "lock", (0, 0))
        assert run("--data", str(data), "--as", "tones", "--set", "epochs=0").exit_code == 1, "which is refused before"
        assert len(list(home.glob("tune-*"))) == 4
        (data / "stray.png").write_bytes(b"x")
        assert run("--data", str(data), "--as", "tones").exit_code == 1
        assert {path.name for path in home.glob("tune-*")} == {"tune-living", "tune-young", "tune-mine"}
        living.kill()
    os.utime(home / "tune-living" / "lock", (0, 0))
    sweep(home)
    assert {path.name for path in home.glob("tune-*")} == {"tune-young", "tune-mine"}


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


def a_job(home: Path, store: Store, data: Path, base: str) -> Tuner:
    id = new_id()
    folder = jobs_folder(home) / id
    folder.mkdir(parents=True)
    shutil.make_archive(str(folder / "packed"), "zip", data)
    (folder / "packed.zip").rename(folder / "dataset")
    values = dict(item.split("=") for item in QUICK)
    return Tuner(Settings(home=home, threads=1), store, store.add(id, {"name": "tones", "base": base, **values}))


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
