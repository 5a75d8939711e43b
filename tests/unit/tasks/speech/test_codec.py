"""Every format is heard the same; everything else is told; frames become words."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from app.card import Card
from app.errors import BadInput, HearthError, TooLarge, UnsupportedMedia
from app.tasks.base import Decoded
from app.tasks.speech import audio
from app.tasks.speech.audio import read_audio
from app.tasks.speech.codec import SpeechCodec

TIME = np.arange(16000) / 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)


def encoded(kind: str, codec: str, rate: int = 16000, layout: str = "mono", sample: str | None = None) -> bytes:
    """The tone in any container."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if sample:
            stream.codec_context.format = sample
        resampler = av.AudioResampler(
            stream.codec_context.format, layout, rate, frame_size=stream.codec_context.frame_size or None
        )
        frame = av.AudioFrame.from_ndarray(TONE[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return out.getvalue()


def wav(samples: np.ndarray, rate: int = 16000, kind: int = 3, channels: int = 1) -> bytes:
    data = samples.tobytes()
    width = samples.dtype.itemsize
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * width * channels, width * channels, 8 * width)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def heard(raw: bytes) -> tuple[float, float]:
    """Seconds, and the loudest frequency."""
    wave = read_audio(raw, 16000, 60)
    spectrum = np.abs(np.fft.rfft(wave))
    return len(wave) / 16000, float(np.fft.rfftfreq(len(wave), 1 / 16000)[spectrum.argmax()])


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "layout", "sample"),
    [
        ("wav", "pcm_u8", 8000, "mono", None),
        ("wav", "pcm_s16le", 16000, "mono", None),
        ("wav", "pcm_s16le", 96000, "stereo", None),
        ("wav", "pcm_s24le", 48000, "mono", None),
        ("wav", "pcm_s32le", 44100, "stereo", None),
        ("wav", "pcm_f32le", 22050, "mono", None),
        ("wav", "pcm_f64le", 16000, "mono", None),
        ("wav", "pcm_mulaw", 8000, "mono", None),
        ("wav", "pcm_s16le", 16000, "5.1", None),
        ("wav", "pcm_s16le", 44100, "7.1", None),
        ("flac", "flac", 44100, "stereo", "s16"),
        ("flac", "flac", 16000, "7.1", "s16"),
        ("mp3", "libmp3lame", 44100, "mono", None),
        ("ogg", "libopus", 48000, "mono", None),
        ("webm", "libopus", 48000, "stereo", None),
        ("ipod", "aac", 44100, "mono", None),
        ("aiff", "pcm_s16be", 44100, "mono", None),
        ("adts", "aac", 44100, "mono", None),
        ("adts", "aac", 48000, "7.1", None),
    ],
)
def test_every_format_is_the_same_tone(kind: str, codec: str, rate: int, layout: str, sample: str | None):
    seconds, hertz = heard(encoded(kind, codec, rate, layout, sample))
    assert abs(seconds - 1) < 0.1
    assert abs(hertz - 440) < 3


def test_a_recording_that_changes_its_rate_on_the_way_is_resampled_throughout():
    seconds, hertz = heard(
        encoded("adts", "aac", 16000) + encoded("adts", "aac", 44100, "stereo") + encoded("adts", "aac", 44100, "7.1")
    )
    assert abs(seconds - 3) < 0.3
    assert abs(hertz - 440) < 3


def test_pcm_at_the_models_rate_is_heard_bit_for_bit():
    """Whatever its length: pieces of a second are put together without loss, and what is left at the end is not lost."""
    for count in (400, 15_999, 16_000, 16_001, 70_000):
        samples = (np.resize(TONE, count) * 32767).astype(np.int16)
        np.testing.assert_array_equal(read_audio(wav(samples, kind=1), 16000, 60), samples.astype(np.float32) / 32768)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 12])
def test_channels_are_averaged_however_many_there_are(count: int):
    """From eight on, PyAV took memory behind its planes for more of them (found by the fuzzer: a crash)."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, count)).astype(np.float32)
    np.testing.assert_allclose(read_audio(wav(samples, channels=count), 16000, 60), samples.mean(axis=1), atol=1e-7)
    together, alone = wav(samples, rate=44100, channels=count), wav(samples.mean(axis=1), rate=44100)
    np.testing.assert_allclose(read_audio(together, 16000, 60), read_audio(alone, 16000, 60), atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", BadInput, "empty"),
        (b"hello, this is text", UnsupportedMedia, "FLAC"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", UnsupportedMedia, ""),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", UnsupportedMedia, ""),
        (wav(np.zeros(0, np.float32)), BadInput, "25 ms"),
        (wav(TONE[:399]), BadInput, "has 24.9 ms of sound; at least 25 ms"),
        (wav(np.zeros(16000, np.float32)), BadInput, "silent"),
        (wav(np.full(16000, 1, np.int16), kind=1), BadInput, "silent"),
        (wav(np.full(16000, np.nan, np.float32)), BadInput, "NaN"),
        (wav(np.full(16000, np.inf, np.float32)), BadInput, "NaN"),
        (wav(TONE * np.float32(3e38)), BadInput, "samples up to 1.5e+38; the limit is 4,294,967,296"),
        (wav(TONE * np.float32(1e30)), BadInput, "between -1 and 1"),
        (wav(np.full(32000, 3e38, np.float32), channels=2), BadInput, "NaN or infinity"),
        (wav(TONE)[:30], UnsupportedMedia, "no recording"),
        ((Path(__file__).parents[3] / "fuzz/corpus/audio/found-1778f6cc5e2d").read_bytes(), BadInput, "asks for more memory"),
        (wav(TONE)[:20_000], BadInput, "ends after 0.31 of 1.00 s: send it whole"),
        (wav(np.tile(TONE, 61)), TooLarge, "1.0 minutes or more; the limit is 1:"),
        (wav(np.full(61_000, 0.1, np.float32), rate=1000), TooLarge, "limit is 1"),
        (wav(np.full(70, 0.1, np.float32), rate=1), BadInput, "claims 1 samples a second"),
        (wav(TONE, rate=120_000_007), BadInput, "claims 120,000,007 samples a second"),
    ],
)
def test_what_cannot_be_heard_is_told(raw: bytes, error: type[HearthError], words: str):
    with pytest.raises(error) as told:
        read_audio(raw, 16000, 60)
    assert words in told.value.detail


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFEFFC, 0x80000000])
def test_a_wav_of_a_writer_that_did_not_know_its_length_is_heard_to_its_end(stated: int):
    """ffmpeg, SoX and arecord write such sizes into a pipe."""
    whole = wav(TONE)
    piped = whole[:40] + struct.pack("<I", stated) + whole[44:]
    np.testing.assert_array_equal(read_audio(piped, 16000, 60), TONE)


def test_a_wav_whose_size_counts_its_header_in_is_heard():
    whole = wav(TONE)
    np.testing.assert_array_equal(read_audio(whole[:40] + struct.pack("<I", len(whole)) + whole[44:], 16000, 60), TONE)


def test_what_is_said_of_a_cut_wav_reaches_over_other_chunks():
    whole = wav(TONE)
    listed = whole[:36] + b"LIST" + struct.pack("<I", 5) + b"INFO\0\0" + whole[36:]
    np.testing.assert_array_equal(read_audio(listed, 16000, 60), TONE)
    with pytest.raises(BadInput, match="ends after"):
        read_audio(listed[:30_000], 16000, 60)


def test_a_cut_flac_is_told():
    whole = encoded("flac", "flac", 44100, sample="s16")
    with pytest.raises(BadInput, match="damaged"):
        read_audio(whole[: len(whole) * 9 // 10], 16000, 60)


VALID = [encoded("wav", "pcm_s16le"), encoded("flac", "flac"), encoded("mp3", "libmp3lame"), encoded("ogg", "libopus", 48000)]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6), st.floats(0.05, 1))
def test_damaged_files_raise_nothing_else(raw: bytes, changes: list[tuple[float, int]], kept: float):
    damaged = bytearray(raw)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    try:
        wave = read_audio(bytes(damaged[: int(len(damaged) * kept)]), 16000, 60)
    except HearthError:
        return
    assert np.isfinite(wave).all()


@pytest.fixture
def codec(tmp_path: Path) -> SpeechCodec:
    return codec_of({"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4}, tmp_path)


def codec_of(vocabulary: dict[str, int], tmp_path: Path) -> SpeechCodec:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    card = Card(
        name="m",
        folder=tmp_path,
        task="speech-recognition",
        source={"kind": "file"},
        input={"window_s": 2, "overlap_s": 0.4},
        about={"licence": "x"},
    )
    return SpeechCodec(card, {"vocab.json": tmp_path / "vocab.json"}, {})


def answer(codec: SpeechCodec, ids: list[int], **options: Any) -> dict[str, Any]:
    decoded = Decoded(samples=(), info={"kept": [(0, None)], "duration_s": 1.0})
    output = {"token_ids": np.array(ids), "token_scores": np.linspace(0.5, 1, len(ids), dtype=np.float32)}
    return codec.interpret(decoded, [output], **options)


def test_repeats_merge_unless_a_blank_stands_between(codec: SpeechCodec):
    assert answer(codec, [0, 3, 3, 0, 3, 4, 4, 0])["text"] == "AAB"
    assert answer(codec, [0, 0, 0])["text"] == ""
    assert answer(codec, [2, 3, 2, 2, 0, 2, 4, 2])["text"] == "A  B", "as transformers: nothing is tidied"
    assert answer(codec, [1, 3, 1])["text"] == "A"


def test_tokens_that_are_words_stay_words(tmp_path: Path):
    digits = codec_of({"<pad>": 0, "<unk>": 1, "|": 2, "SIX": 3, "ONE": 4}, tmp_path)
    told = answer(digits, [3, 0, 3, 4, 2, 4, 0], words=True)
    assert told["text"] == "SIX SIX ONE ONE"
    assert [word["word"] for word in told["words"]] == ["SIX", "SIX", "ONE", "ONE"]
    sounds = codec_of({"<pad>": 0, "|": 1, "CH": 2, "A": 3}, tmp_path)
    assert answer(sounds, [2, 3, 2, 1, 3])["text"] == "CHACH A", "beside single letters they are parts of words"


def test_words_have_times_and_scores(codec: SpeechCodec):
    told = answer(codec, [0, 3, 4, 2, 0, 3], words=True)["words"]
    assert [word["word"] for word in told] == ["AB", "A"]
    assert (told[0]["start_s"], told[0]["end_s"]) == (0.02, 0.06)
    assert (told[1]["start_s"], told[1]["end_s"]) == (0.1, 0.12)
    assert told[0]["score"] == pytest.approx((0.6 + 0.7) / 2, abs=1e-3)


def test_long_recordings_are_cut_and_normalised_window_by_window(codec: SpeechCodec):
    decoded = codec.decode(wav(np.tile(TONE, 5)))
    assert len(decoded.samples) == 4
    assert sum(sample.cost for sample in decoded.samples) > 5
    for sample in decoded.samples:
        assert abs(sample.arrays["waveform"].mean()) < 1e-4
        assert abs(sample.arrays["waveform"].std() - 1) < 1e-3


@pytest.mark.parametrize("scale", [1, 2**15, 2**31])
def test_float_samples_in_the_range_of_integers_are_normalised_alike(codec: SpeechCodec, scale: int):
    (wanted,), (sample,) = (codec.decode(wav(TONE * np.float32(factor))).samples for factor in (1, scale))
    np.testing.assert_allclose(sample.arrays["waveform"], wanted.arrays["waveform"], atol=1e-5)


@pytest.mark.parametrize("error", [MemoryError(), av.error.MemoryError(12, "Cannot allocate memory")])
def test_want_of_memory_while_it_decodes_is_no_damage(monkeypatch: pytest.MonkeyPatch, error: MemoryError):
    """`app/decoding/decoder.py` tells it as too large."""

    def mono(*_: object) -> np.ndarray:
        raise error

    monkeypatch.setattr(audio, "_mono", mono)
    with pytest.raises(MemoryError):
        read_audio(wav(TONE), 16000, 60)
