"""With and without a network: what each profile serves, and how loudly it says so."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from torchvision import models

from tests.conftest import ROOT
from tests.mirror import running
from tests.stack.conftest import Server, wait_for

OFFLINE = {"HEARTH_HUB_URL": "http://127.0.0.1:9", "HEARTH_TORCHVISION_URL": "http://127.0.0.1:9"}  # discard: nobody listens
SAMPLE = (ROOT / "models" / "cifar-resnet" / "sample.jpg").read_bytes()
CARD = """
task    = "image-classification"
default = true
source  = {{ kind = "torchvision", entry = "resnet18", weights = "IMAGENET1K_V1", file = "{file}" }}
[about]
licence = "x"
"""


def write_card(home: Path, file: str) -> None:
    """It hides the shipped card, and so becomes the pretrained default."""
    folder = home / "models" / "resnet50"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD.format(file=file))
    (folder / "sample.jpg").write_bytes(SAMPLE)


def test_auto_without_a_network_says_so_loudly_and_serves_the_starters(tmp_path: Path):
    with Server(tmp_path, HEARTH_PROFILE="auto", **OFFLINE) as server:
        assert "NO PRETRAINED WEIGHTS for resnet50, wav2vec2-base-960h" in server.log
        assert "hearth pull resnet50 wav2vec2-base-960h" in server.log
        assert server.predict(SAMPLE).json()["model"] == "cifar-resnet"
        recording = (ROOT / "models" / "spoken-digits" / "sample.wav").read_bytes()
        assert server.http.post("/transcribe", content=recording).json()["results"][0]["text"] == "SEVEN"
        assert server.http.get("/health/ready").status_code == 200
        answer = server.http.post("/models/resnet50/load")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "hearth pull resnet50" in answer.json()["detail"]


def test_pretrained_without_a_network_fails_in_one_clear_line(tmp_path: Path):
    environment = os.environ | OFFLINE | {"HEARTH_HOME": str(tmp_path), "HEARTH_PORT": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "app", "serve", "--profile", "pretrained"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "no weights for resnet50" in result.stderr
    assert "HEARTH_PROFILE=starter" in result.stderr
    assert "Traceback" not in result.stderr


def test_auto_with_a_network_pulls_checks_and_serves_what_it_pulled(tmp_path: Path):
    out = io.BytesIO()
    torch.manual_seed(0)
    torch.save(models.resnet18().state_dict(), out)
    with running() as mirror:
        file = mirror.put_torchvision("resnet18", out.getvalue())
        write_card(tmp_path, file)
        with Server(
            tmp_path, HEARTH_PROFILE="auto", HEARTH_HUB_URL=OFFLINE["HEARTH_HUB_URL"], HEARTH_TORCHVISION_URL=mirror.url
        ) as server:
            body = server.predict(SAMPLE).json()
            assert body["model"] == "resnet50"
            assert body["results"][0]["predictions"][0]["label"] in models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
            assert "NO PRETRAINED WEIGHTS for wav2vec2-base-960h" in server.log
        assert (tmp_path / "weights" / file).read_bytes() == out.getvalue()


def damage(home: Path) -> Path:
    """What lies here in place of ResNet-50's weights."""
    path = home / "weights" / "resnet50-11ad3fa6.pth"
    path.parent.mkdir()
    path.write_bytes(b"damage")
    return path


def test_auto_with_damaged_weights_and_no_network_names_the_file_and_serves_the_starter(tmp_path: Path):
    damage(tmp_path)
    with Server(tmp_path, HEARTH_PROFILE="auto", **OFFLINE) as server:
        assert re.search(r"resnet50-11ad3fa6.pth has SHA-256 .*, not 11ad3fa6…; run: hearth pull resnet50", server.log)
        assert "NO PRETRAINED WEIGHTS for resnet50" in server.log
        assert server.predict(SAMPLE).json()["model"] == "cifar-resnet"
        assert server.http.get("/health/ready").status_code == 200


def test_a_model_with_damaged_weights_fails_alone_and_says_what_to_do(tmp_path: Path):
    """Named by the user, it is not replaced by another; its damaged file is gone, so that nothing calls it here."""
    path = damage(tmp_path)
    with Server(tmp_path, HEARTH_MODELS="resnet50,digits", **OFFLINE) as server:
        told = wait_for(lambda: server.model("resnet50")["why"])
        assert "hearth pull resnet50" in told
        assert "resnet50-11ad3fa6.pth has SHA-256" in server.log
        assert not path.exists()
        assert server.predict(SAMPLE, model="digits").status_code == 200


def test_a_mistake_in_a_setting_is_one_line(tmp_path: Path):
    environment = os.environ | {"HEARTH_HOME": str(tmp_path), "HEARTH_PROT": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "app", "serve"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "HEARTH_PROT" in result.stderr
    assert "Traceback" not in result.stderr
