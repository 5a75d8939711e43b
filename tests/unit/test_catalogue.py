"""Cards are read strictly, and mistakes are told by file, line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.catalogue import Catalogue, read_card, shipped_models
from app.errors import Invalid, UnknownModel

GOOD = """
task   = "image-classification"
source = { kind = "module", entry = "Net" }
[about]
licence = "Apache-2.0"
"""


def write(parent: Path, text: str, name: str = "toy") -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(text)
    return folder


def test_a_good_card_takes_its_name_from_its_folder(tmp_path: Path):
    card = read_card(write(tmp_path, GOOD))
    assert (card.name, card.task, card.source.kind, card.limits.max_batch) == ("toy", "image-classification", "module", 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("source = {", 'colour = "red"\nsource = {'), ["card.toml:3", "colour", "unknown key", "default", "limits", "starter"]),
        (('entry = "Net"', 'entry = "Net", entri = 1'), ["card.toml:3", "entri", "unknown key", "arguments", "weights"]),
        (("[about]", "[limits]\nmax_batches = 3\n[about]"), ["card.toml:5", "max_batches", "max_batch", "max_queue"]),
        (("[about]", "[input]\nresise = 3\n[about]"), ["card.toml:5", "resise", "unknown key", "resize", "crop"]),
        (("[about]", "[input]\ncrop = -1\n[about]"), ["card.toml:5", "crop", "greater than or equal to 1"]),
        (("image-classification", "image-guessing"), ["card.toml:2", "image-guessing", "text-embedding"]),
        (('kind = "module"', 'kind = "modul"'), ["card.toml:3", "modul", "'torchvision'", "'package'"]),
        (("licence", "license"), ["license"]),
        (("task ", "task = = "), ["card.toml", "line 2"]),
    ],
)
def test_a_mistake_is_told_with_file_line_and_remedy(tmp_path: Path, change: tuple[str, str], words: list[str]):
    folder = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(Invalid) as told:
        read_card(folder)
    for word in words:
        assert word in told.value.detail


def test_a_broken_card_in_the_home_harms_no_other(tmp_path: Path):
    write(tmp_path / "shipped", GOOD, "ours")
    write(tmp_path / "home/models", GOOD, "good")
    write(tmp_path / "home/models", "task = 3", "bad")
    catalogue = Catalogue.read(tmp_path / "home", tmp_path / "shipped")
    assert list(catalogue.cards) == ["good", "ours"]
    assert [Path(folder).name for folder in catalogue.broken] == ["bad"]


def test_a_broken_shipped_card_is_an_error(tmp_path: Path):
    write(tmp_path / "shipped", "task = 3", "bad")
    with pytest.raises(Invalid):
        Catalogue.read(tmp_path / "home", tmp_path / "shipped")


def test_a_card_in_the_home_hides_the_shipped_one(tmp_path: Path):
    write(tmp_path / "shipped", GOOD)
    write(
        tmp_path / "home/models",
        GOOD.replace("[about]", 'version = "2"\n[about]').replace("[about]\nversion", "version"),
        "other",
    )
    hidden = write(tmp_path / "home/models", 'version = "2"\n' + GOOD)
    assert Catalogue.read(tmp_path / "home", tmp_path / "shipped").cards["toy"].folder == hidden


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path):
    with pytest.raises(UnknownModel, match=r"'resnet5'.*resnet18.*resnet50"):
        Catalogue.read(tmp_path).named("resnet5")


def test_the_profiles_choose(tmp_path: Path):
    catalogue = Catalogue.read(tmp_path)
    starters = {
        "image-classification": "cifar-resnet",
        "text-embedding": "all-minilm-l6-v2",
        "speech-recognition": "spoken-digits",
    }
    pretrained = starters | {"image-classification": "resnet50", "speech-recognition": "wav2vec2-base-960h"}
    assert catalogue.defaults("starter", lambda _: True) == starters
    assert catalogue.defaults("pretrained", lambda _: False) == pretrained
    assert catalogue.defaults("auto", lambda _: True) == pretrained
    assert catalogue.defaults("auto", lambda card: card.starter) == starters
    assert catalogue.defaults("auto", lambda card: card.name == "resnet50")["image-classification"] == "resnet50"


def test_the_shipped_catalogue_has_what_the_readme_promises():
    names = set(Catalogue.read(Path("/nowhere")).cards)
    assert {"resnet18", "resnet50", "vgg16", "inception-v3"} <= names
    assert {"all-minilm-l6-v2", "bert-base-uncased", "roberta-base", "wav2vec2-base-960h", "digits"} <= names
    assert shipped_models().is_dir()
