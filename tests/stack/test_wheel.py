"""What `pip install` of the built wheel puts into an empty place is enough: it has its cards and starters, and serves them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stack.conftest import Server

SHIPPED = ROOT / "models"
STARTERS = {"cifar-resnet", "digits", "all-minilm-l6-v2", "spoken-digits"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, built by the pinned back end, without a network, and outside the checkout."""
    built, folder = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob("hearth-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: nothing is found because it happens to lie there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(unpacked: Path, home: Path, *arguments: str) -> str:
    """What Python prints in which only the unpacked wheel is `app`."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "HEARTH_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_every_model_is_in_it(unpacked: Path):
    files = {path.relative_to(SHIPPED) for path in SHIPPED.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    packed = unpacked / "app" / "_models"
    assert files == {path.relative_to(packed) for path in packed.rglob("*") if path.is_file()}
    assert [str(file) for file in files if (packed / file).read_bytes() != (SHIPPED / file).read_bytes()] == []


def test_it_brings_the_command_and_nothing_of_the_checkout_but_the_package(unpacked: Path):
    (about,) = unpacked.glob("hearth-*.dist-info")
    assert {path.name for path in unpacked.iterdir()} == {"app", about.name}
    assert "hearth = app.__main__:main" in (about / "entry_points.txt").read_text()


def test_hearth_models_lists_all_cards_and_finds_the_starters_weights(unpacked: Path, empty: Path):
    assert ran(unpacked, empty, "-c", "import app; print(app.__file__)").strip() == str(unpacked / "app" / "__init__.py")
    told = re.findall(r"^(\S+) +\S+ +(here|missing)\b", ran(unpacked, empty, "-m", "app", "models"), re.MULTILINE)
    rows = dict(told)
    assert set(rows) == {path.parent.name for path in SHIPPED.glob("*/card.toml")}
    assert {name for name, weights in rows.items() if weights == "here"} >= STARTERS


def test_it_serves_a_right_answer(unpacked: Path, empty: Path):
    with Server(empty, PYTHONPATH=str(unpacked), HEARTH_MODELS="digits") as server:
        answer = server.predict((SHIPPED / "digits" / "sample.png").read_bytes()).json()
        assert answer["model"] == "digits"
        best = answer["results"][0]["predictions"][0]
        assert best | json.loads((SHIPPED / "digits" / "expected.json").read_text()) == best
        for process in server.children().values():
            assert process.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(unpacked)
            assert process.cwd() != str(ROOT)
