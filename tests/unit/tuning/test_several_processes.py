"""One training in two processes on the CPU: what `accelerate launch` does on several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from app.tuning.trainer import Recipe, Training
from tests.rules.source import ROOT
from tests.unit.tuning.test_trainer import Clouds, linear

CARD = """task = "image-classification"
source = { kind = "module", entry = "Net" }
input = { resize = [8, 8], crop = 8, mean = [0.5], std = [0.3], color = "gray" }
[about]
licence = "MIT"
"""
MODEL = """from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 2))
"""


def launch(*arguments: str, **more: str) -> str:
    """By torchrun, which is what `accelerate launch` calls on GPUs; on a CPU accelerate's own starts one process alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    launch("-m", "tests.unit.tuning.shared_training", str(out))
    assert not (out / "ended as usual").exists(), "which now and then aborts, with gloo's threads"
    return {path.name: torch.load(path, weights_only=True) for path in out.iterdir()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("name", ["plain", "whole", "again"])
def test_both_end_with_the_same_weights_and_figures(told: dict[str, Any], name: str):
    first, second = told[f"{name}.0"], told[f"{name}.1"]
    assert same(first["weights"], second["weights"])
    assert first["losses"] == second["losses"] and first["metrics"] == second["metrics"] and first["best"] == second["best"]


def test_they_learn_what_one_process_learns(told: dict[str, Any]):
    alone = Training(
        linear(), Clouds(), Recipe(epochs=2, batch_size=16, accumulate=3, optimizer="adamw", learning_rate=0.01, clip_norm=1.0)
    )
    losses = [progress.loss for progress in alone]
    assert told["plain.0"]["losses"] == pytest.approx(losses, rel=1e-5)
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(told["plain.0"]["weights"][name], value, rtol=1e-5, atol=1e-6)


def test_cut_off_and_gone_on_with_they_end_with_the_same_weights(told: dict[str, Any]):
    assert len(told["again.0"]["losses"]) == len(told["whole.0"]["losses"]) - 3
    assert same(told["whole.0"]["weights"], told["again.0"]["weights"])


def test_hearth_tune_prints_and_writes_once(tmp_path: Path):
    folder = tmp_path / "home" / "models" / "shades"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD)
    (folder / "model.py").write_text(MODEL)
    for part, label, low in [(part, *one) for part in ("train", "val") for one in (("dark", 0), ("bright", 150))]:
        (tmp_path / "data" / part / label).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (8, 8), low + 10 * number).save(tmp_path / "data" / part / label / f"{number}.png")
    recipe = [f"--set={item}" for item in ("epochs=6", "batch_size=4", "metric=accuracy", "schedule=linear")]
    where = {"HEARTH_HOME": str(tmp_path / "home")}
    told = launch("-m", "app", "tune", "shades", "--data", str(tmp_path / "data"), *recipe, **where)
    assert told.count("130 parameters") == 1 and told.count("epoch   6") == 1 and "on cpu" in told
    assert "% accuracy on the held-out part" in (folder / "card.toml").read_text()
    assert {"weights.safetensors", "labels.txt"} < {path.name for path in folder.iterdir()}
