"""`hearth tune --as` and the tuner of a job: the same steps from data to a version of a model, here in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.catalogue import read_card
from app.cli import _stop, app
from app.tuning.room import sweep
from tests.conftest import ROOT
from tests.unit.tuning.test_several_processes import launch

QUICK = ("epochs=6", "batch_size=4", "learning_rate=0.1")


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


def test_names_are_shown_as_they_are(home: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    (data / "dark").rename(data / "[bold]dark :dog:")
    (data / "[about].txt").write_text("x")
    done = run("--data", str(data), "--as", "tones", "--set", "epochs=1", "--set", "batch_size=4")
    assert "8 [bold]dark :dog:" in done.output and "not read: [about].txt" in done.output, (done.output, done.exception)
    with pytest.raises(SystemExit):
        _stop("[/dark]/x.png: is no picture :dog:")
    assert capsys.readouterr().err == "hearth: [/dark]/x.png: is no picture :dog:\n"


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
        (["--as", "tones", "--set", "method=lora"], "no linear layer or convolution that can have matrices"),
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
