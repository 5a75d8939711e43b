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
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from app.card import Card
from app.errors import BadInput
from app.tasks.speech.codec import usable
from app.tasks.speech.dataset import SpeechDataset, edits
from app.tasks.speech.transcripts import spelled
from app.tasks.speech.utterances import Clip, Mix, Utterances
from app.tuning.trainer import Recipe, Training

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
    assert (len(by_speaker._utterances._clips), len(by_speaker._held_out)) == (8, 8)


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


def test_words_are_whole_where_the_vocabulary_has_them():
    assert spelled("ONE TWO ONE", usable(WORDS)) == ["ONE", "|", "T", "W", "O", "|", "ONE"]
    assert spelled("TWO ONE TWO", {"ONE", "TWO"}) == ["TWO", "ONE", "TWO"], "no | between tokens that are words"
    assert spelled("<pad> |", usable(WORDS)) == [*"<pad>", "|", "|"], "what is special in the vocabulary is a word in a text"


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


@pytest.mark.parametrize(
    ("seed", "samples", "target", "loudness"),
    [
        (1, 8000, [3, 3, 4, 5, 6, 3], 25468.36),
        (2, 24000, [3, 2, 3, 3, 2, 3, 3, 2, 3, 2, 3, 3, 2, 4, 5, 6, 2, 3], 65250.83),
    ],
)
def test_the_draws_that_made_the_shipped_weights_are_made_again(
    archive: Path, card: Card, seed: int, samples: int, target: list[int], loudness: float
):
    batch = next(SpeechDataset.open(archive, card).batches(4, torch.Generator().manual_seed(seed), 0))
    assert (batch["waveform"].shape, batch["target"].tolist()) == ((4, samples), target)
    assert float(batch["waveform"].abs().sum()) == pytest.approx(loudness, rel=1e-5)


def clips(*seconds: float) -> list[Clip]:
    random = np.random.default_rng(0)
    return [(random.normal(0, 0.1, int(16000 * one)).astype(np.float32), f"W{n}") for n, one in enumerate(seconds)]


def test_long_recordings_are_heard_alone_each_near_its_own_length():
    sentences = clips(*np.linspace(2, 20, 40))
    mix = Mix.of([len(sound) for sound, _ in sentences])
    assert len(set(mix.alone)) <= 7 and len(mix.alone) == 40 and (mix.joined, mix.share_alone) == ((), 1.0)
    assert all(0.8 < len(sound) / samples < 1.25 for (sound, _), samples in zip(sentences, mix.alone, strict=True))
    utterances, random = Utterances(sentences, mix), np.random.default_rng(0)
    heard = {text for _ in range(100) for _, text in utterances.batch(4, random)}
    assert heard == {text for _, text in sentences} and utterances.steps(4) == 10


def test_short_recordings_are_also_joined_and_none_is_cut_off():
    words = clips(*np.linspace(0.2, 0.6, 20), 3.0)
    utterances, random = Utterances(words, Mix.of([len(sound) for sound, _ in words])), np.random.default_rng(0)
    batches = [utterances.batch(4, random) for _ in range(50)]
    assert len({len(sound) for batch in batches for sound, _ in batch}) <= 9
    joined = [text for batch in batches for _, text in batch if " " in text]
    assert joined and not any("W20" in text for text in joined)


def test_without_augmentation_a_recording_sounds_as_it_is():
    words = clips(0.5, 0.5)
    (sound, text), *_ = Utterances(words, Mix.of([8000, 8000]), augment=False).batch(2, np.random.default_rng(0))
    np.testing.assert_allclose(sound[:-1], words[int(text[1])][0][:-1], atol=1e-6)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    kernels = {"conv_dim": (8, 8), "conv_kernel": (32, 20), "conv_stride": (16, 20), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2ForCTC(Wav2Vec2Config(**shape, **kernels, **positions, vocab_size=len(WORDS)))


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_that_was_killed_after_any_step_ends_with_the_same_weights(card: Card, tmp_path: Path, after: int):
    said = [(sound, "ONE" if n % 2 else "TWO") for n, (sound, _) in enumerate(clips(*np.linspace(0.2, 0.6, 20)))]
    dataset = SpeechDataset(said[4:], said[:4], card, {"vocab.json": tmp_path / "vocab.json"}, Mix.of([len(s) for s, _ in said]))
    recipe = Recipe(epochs=2, batch_size=3, optimizer="adamw", learning_rate=1e-3, ema=0.9, clip_norm=1.0)
    whole = Training(tiny(), dataset, recipe)
    undisturbed = [(one.step, one.loss, one.metrics) for one in whole]
    killed = Training(tiny(), dataset, recipe)
    for progress in killed:
        if progress.step == after:
            torch.save(killed.state(), tmp_path / "state.pt")
            break
    again = Training(tiny(), dataset, recipe.model_copy(update={"seed": 1}))  # another process begins otherwise
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [(one.step, one.loss, one.metrics) for one in again] == undisturbed[after:]
    for (name, one), other in zip(whole.module.state_dict().items(), again.module.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("heard", "said", "count"), [("a b", "a b", 0), ("", "a b", 2), ("a c b", "a b", 1), ("b a", "a b", 2)])
def test_edits_count_words(heard: str, said: str, count: int):
    assert edits(heard.split(), said.split()) == count
