"""Transcripts against Wav2Vec2ForCTC with greedy decoding, long recordings against transformers' own pipeline."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from app.card import Card
from app.catalogue import Catalogue
from app.engine.loader import load
from app.engine.modules import eager
from app.engine.runner import Runner
from app.settings import Settings
from app.tasks.speech import network
from app.tasks.speech.audio import demuxer, read_audio
from app.tasks.speech.codec import SpeechCodec, cut
from app.tasks.speech.program import SpeechProgram
from app.weights import fetch
from tests.conftest import SHARED

LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"


def clips() -> list[str]:
    if not SHARED.is_dir():
        return []
    with (SHARED / "speech" / "transcripts.csv").open() as file:
        return [row["file"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=["group", "layer"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Card]:
    """A Wav2Vec2 with random weights in both of its published forms, and its vocabulary on disk."""
    torch.manual_seed(3)
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(48,) * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=request.param,
        do_stable_layer_norm=request.param == "layer",
        vocab_size=len(LETTERS) + 5,
        pad_token_id=0,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("speech")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {letter: n + 5 for n, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    module = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        module.lm_head.weight.mul_(20)  # so that the random answers change from frame to frame
        module.lm_head.bias[1:4] = -1e6  # a trained model never says <s>, </s> or <unk>; the references would spell them out
    card = Card(
        name="m",
        folder=folder,
        task="speech-recognition",
        source={"kind": "file"},
        input={"window_s": 6, "overlap_s": 1},
        about={"licence": "x"},
    )
    return module, folder, card


def transcribe(runner: Runner, codec: SpeechCodec, raw: bytes, **options: Any) -> dict[str, Any]:
    decoded = codec.decode(raw)
    outputs: Any = runner.run([sample.arrays for sample in decoded.samples])
    return codec.interpret(decoded, outputs, **options)


def test_transcripts_equal_the_references(shared: Path, model: tuple[Any, Path, Card]):
    """All clips: short ones against the bare model and tokenizer, long ones against the pipeline with the same windows."""
    module, folder, card = model
    codec = SpeechCodec(card, {"vocab.json": folder / "vocab.json"}, {})
    runner = Runner(eager(SpeechProgram(card, {}), module), SpeechProgram(card, {}), lambda *_: None)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    pipeline = AutomaticSpeechRecognitionPipeline(model=module, feature_extractor=extractor, tokenizer=tokenizer, device="cpu")
    compared = 0
    for name in clips():
        raw = (shared / "speech" / name).read_bytes()
        waveform = read_audio(raw, 16000, 1800)
        if len(waveform) <= 6 * 16000:
            inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values
            with torch.inference_mode():
                reference = tokenizer.batch_decode(module(inputs).logits.argmax(-1))[0]
        elif len(waveform) < 15 * 16000:
            reference = pipeline(waveform.copy(), chunk_length_s=6, stride_length_s=1)["text"]
        else:
            continue
        answer = transcribe(runner, codec, raw, words=True)
        assert answer["text"] == reference, name
        assert [word["word"] for word in answer["words"]] == reference.split()
        compared += bool(reference)
    assert compared >= 25


def test_an_answer_does_not_depend_on_its_neighbours(shared: Path, model: tuple[Any, Path, Card]):
    module, folder, card = model
    codec = SpeechCodec(card, {"vocab.json": folder / "vocab.json"}, {})
    waves = [codec.decode((shared / "speech" / name).read_bytes()).samples[0].arrays for name in clips()[:8]]
    with torch.inference_mode():
        together, frames = network.logits(module, network.pad(waves))
        for row, sample in enumerate(waves):
            reference = module(torch.from_numpy(sample["waveform"].copy())[None]).logits[0]
            assert len(reference) == frames[row]
            assert float((together[row, : frames[row]] - reference).abs().max()) <= 1e-5 * float(reference.abs().max())


def test_the_starter_hears_what_the_reference_hears_alone_and_in_company(shared: Path):
    """As served: token by token what `Wav2Vec2ForCTC` gives, and in a mixed batch within 1e-5 of what it is alone."""
    settings = Settings(home=Path("/nowhere"))
    card = Catalogue.read(settings.home).named("spoken-digits")
    files = fetch(card, settings, lambda *_: None)
    module = load(card, files)
    program, codec = SpeechProgram(card, files), SpeechCodec(card, files, {})
    runner = Runner(eager(program, module), program, lambda *_: None)
    reference = Wav2Vec2ForCTC.from_pretrained(card.folder, dtype=torch.float32).eval()
    with zipfile.ZipFile(shared / "speech" / "fsdd.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("_0.wav"))[::5]
        waves = [codec.decode(archive.read(name)).samples[0].arrays for name in names]
    together: Any = runner.run(waves)
    assert len(together) == 12
    for sample, got in zip(waves, together, strict=True):
        alone: Any = runner.run([sample])[0]
        assert (alone["token_ids"] == got["token_ids"]).all()
        assert np.abs(alone["token_scores"] - got["token_scores"]).max() <= 1e-5
        with torch.inference_mode():
            scores = reference(torch.from_numpy(sample["waveform"].copy())[None]).logits[0].softmax(-1)
        assert (scores.argmax(-1).numpy() == got["token_ids"]).all()
        assert np.abs(scores.amax(-1).numpy() - got["token_scores"]).max() <= 1e-5


def test_every_clip_has_the_length_that_its_list_says(shared: Path):
    with (shared / "speech" / "transcripts.csv").open() as file:
        for row in csv.DictReader(file):
            waveform = read_audio((shared / "speech" / row["file"]).read_bytes(), 16000, 1800)
            assert abs(len(waveform) / 16000 - float(row["seconds"])) < 0.1, row["file"]


def test_first_bytes_name_the_container_that_ffmpeg_finds(shared: Path):
    found = set()
    for name in clips():
        raw = (shared / "speech" / name).read_bytes()
        with av.open(str(shared / "speech" / name)) as container:
            assert demuxer(raw) in (None, *container.format.name.split(","))
        found.add(demuxer(raw))
    assert found == {"wav", "flac", "ogg", "matroska", "aiff", None}


def test_resampling_keeps_a_tone_and_drops_what_cannot_be_kept(tmp_path: Path):
    """A 1 kHz tone at 48 kHz comes back as the same tone at 16 kHz; 10 kHz, above half the rate, is gone."""
    import io
    import wave

    def heard(hertz: float) -> np.ndarray:
        time = np.arange(48000) / 48000
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setparams((1, 2, 48000, 0, "NONE", ""))
            file.writeframes((np.sin(2 * np.pi * hertz * time) * 30000).astype("<i2").tobytes())
        return read_audio(out.getvalue(), 16000, 10)

    tone = heard(1000)
    ideal = np.sin(2 * np.pi * 1000 * np.arange(len(tone)) / 16000) * 30000 / 32768
    middle = slice(1000, -1000)
    assert np.abs(tone[middle] - ideal[middle]).max() < 0.01
    assert np.abs(heard(10_000)[middle]).max() < 0.01


@pytest.mark.parametrize("samples", [400, 95_999, 96_000, 96_001, 200_000, 1_000_000])
def test_windows_keep_every_frame_once(samples: int):
    windows = cut(samples, 96_000, 16_000)
    kept: list[int] = []
    for window in windows:
        frames = range((window.end - window.start - 400) // 320 + 1)
        kept += [window.start // 320 + frame for frame in frames[window.drop_left : window.keep_until]]
    assert kept == list(range((samples - 400) // 320 + 1))
