"""Weights that are there and cannot be read are told by file and reason; whether a mirror answers is known within a bound."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from app import weights
from app.card import Card, FileSource, ModuleSource
from app.download import WeightsError
from app.settings import Settings
from app.weights import checked, described_files, reachable
from tests.mirror import running

SICK = Path("/proc/self/mem")  # a regular file whose reading fails, for root too


def card(folder: Path, file: str = "weights.safetensors") -> Card:
    source = ModuleSource(kind="module", entry="Net", weights=file, sha256="0" * 64)
    return Card(name="net", folder=folder, task="image-classification", source=source, about={"licence": "x"})


@pytest.mark.skipif(not SICK.exists(), reason="Linux's /proc")
def test_weights_that_cannot_be_read_are_told_by_file_and_reason(tmp_path: Path):
    (tmp_path / "weights.safetensors").symlink_to(SICK)
    with pytest.raises(WeightsError, match=r"net: weights.safetensors cannot be read \(Input/output error\); mend that, or put"):
        checked(card(tmp_path), Settings())


def test_weights_that_cannot_even_be_looked_for_are_told(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"net: x+ cannot be read \(File name too long\)"):
        checked(card(tmp_path, "x" * 300), Settings())


def test_a_folder_in_place_of_the_weights_counts_as_missing(tmp_path: Path):
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(WeightsError, match="net: its weights are missing"):
        checked(card(tmp_path), Settings())


def test_a_fresh_start_needs_what_describes_the_network_and_no_weights(tmp_path: Path):
    about = {"licence": "x"}
    speech = Card(name="ears", folder=tmp_path, task="speech-recognition", source={"kind": "file"}, about=about)
    with pytest.raises(WeightsError, match=r"ears: its config.json is missing; put it beside the card"):
        described_files(speech)
    for name in ("config.json", "vocab.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert set(described_files(speech)) == {"config.json", "vocab.json"}
    assert described_files(card(tmp_path)) == {}
    foreign = speech.model_copy(update={"source": FileSource(kind="file", architecture="torchvision:resnet18")})
    with pytest.raises(WeightsError, match="no network of its own"):
        described_files(foreign)


def test_any_answer_counts_as_reachable_also_through_a_proxy(monkeypatch: pytest.MonkeyPatch):
    """The mirror knows no HEAD and answers 501; as a proxy it is asked for a name that only it could know."""
    with running() as mirror:
        assert reachable(Settings(torchvision_url=mirror.url), card(Path()))
        away = Settings(torchvision_url="http://weights.invalid")
        assert not reachable(away, card(Path()))
        monkeypatch.setenv("http_proxy", mirror.url)
        assert reachable(away, card(Path()))


def test_a_proxy_that_lets_nothing_through_is_no_network(monkeypatch: pytest.MonkeyPatch):
    with running() as mirror:
        monkeypatch.setenv("https_proxy", mirror.url)  # it refuses to CONNECT
        assert not reachable(Settings(torchvision_url="https://weights.invalid"), card(Path()))


def test_a_mirror_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "_REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not reachable(Settings(torchvision_url=url), card(Path()))


def test_a_name_that_nobody_resolves_does_not_hold_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "_REACH_S", 0.2)
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved.wait(60))
    started = time.monotonic()
    try:
        assert not reachable(Settings(torchvision_url="http://weights.invalid"), card(Path()))
        assert time.monotonic() - started < 30
    finally:
        resolved.set()
