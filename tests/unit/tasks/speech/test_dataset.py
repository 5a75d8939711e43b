"""Spoken digits are split as told, spelled as the vocabulary has them, and made into utterances of the asked length."""

from __future__ import annotations

import io
import json
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from app.card import Card
from app.errors import BadInput
from app.tasks.speech.dataset import SpeechDataset, edits

WORDS = {"<pad>": 0, "<unk>": 1, "|": 2, "ONE": 3, "T": 4, "W": 5, "O": 6}


def recording(digit: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.random.default_rng(digit).normal(0, 3000, 3200)).astype("<i2").tobytes())
    return out.getvalue()


@pytest.fixture
def card(tmp_path: Path) -> Card:
    (tmp_path / "vocab.json").write_text(json.dumps(WORDS))
    return Card(name="m", folder=tmp_path, task="speech-recognition", source={"kind": "file"}, about={"licence": "x"})


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "digits.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("README.md", "no recording")
        for digit in (1, 2):
            for speaker in ("ann", "bob"):
                for index in (0, 4, 5, 9):
                    file.writestr(f"x/recordings/{digit}_{speaker}_{index}.wav", recording(digit))
    return path


def test_recordings_0_to_4_are_kept_out_unless_speakers_are_named(archive: Path, card: Card):
    assert len(SpeechDataset.open(archive, card)._held_out) == 8
    by_speaker = SpeechDataset.open(archive, card, hold_out=["bob"])
    assert (len(by_speaker._train), len(by_speaker._held_out)) == (8, 8)


def test_a_split_that_leaves_nothing_is_told(archive: Path, card: Card):
    with pytest.raises(BadInput, match="hold_out"):
        SpeechDataset.open(archive, card, hold_out=["carl"])


def test_what_is_no_zip_or_no_recording_is_told_by_name(tmp_path: Path, card: Card):
    (tmp_path / "bad.zip").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"bad.zip is not a readable zip"):
        SpeechDataset.open(tmp_path / "bad.zip", card)
    with zipfile.ZipFile(tmp_path / "worse.zip", "w") as file:
        file.writestr("1_ann_0.wav", "no sound")
    with pytest.raises(BadInput, match=r"worse.zip, 1_ann_0.wav: these bytes are no recording"):
        SpeechDataset.open(tmp_path / "worse.zip", card)


def test_words_are_whole_where_the_vocabulary_has_them(archive: Path, card: Card):
    assert SpeechDataset.open(archive, card)._spell("ONE TWO ONE") == [3, 2, 4, 5, 6, 2, 3]


@pytest.mark.parametrize("alone", [0.0, 1.0])
def test_batches_have_one_length_and_repeat_with_their_seed(archive: Path, card: Card, alone: float):
    dataset = SpeechDataset.open(archive, card, alone=alone)
    first, again = (next(dataset.batches(4, torch.Generator().manual_seed(1), 0)) for _ in range(2))
    assert first["waveform"].shape[0] == 4
    assert set(first["samples"].tolist()) == {first["waveform"].shape[1]}
    assert (first["waveform"].shape[1] < 10_000) == bool(alone)
    assert int(first["lengths"].sum()) == len(first["target"])
    for name in first:
        torch.testing.assert_close(first[name], again[name])


@pytest.mark.parametrize(("heard", "said", "count"), [("a b", "a b", 0), ("", "a b", 2), ("a c b", "a b", 1), ("b a", "a b", 2)])
def test_edits_count_words(heard: str, said: str, count: int):
    assert edits(heard.split(), said.split()) == count
