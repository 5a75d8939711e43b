"""Recordings and transcripts as callers send them: what is understood, and everything that is wrong with it, at once."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.card import Card
from app.tasks.speech import transcripts
from app.tasks.speech.audio import read_audio
from app.tasks.speech.transcripts import check, prepared

LETTERS = {"<pad>": 0, "<unk>": 1, "|": 2, **{letter: 3 + place for place, letter in enumerate("ENOTW'")}}
WORDS = {"<pad>": 0, "|": 1, "ONE": 2, "TWO": 3}


def tone(hertz: int, seconds: float = 0.5, loudness: float = 0.3) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        times = np.arange(int(seconds * 16000)) / 16000
        file.writeframes((loudness * 32767 * np.sin(2 * np.pi * hertz * times)).astype("<i2").tobytes())
    return out.getvalue()


def lay(root: Path, rows: list[str], files: Mapping[str, bytes], name: str = "transcripts.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    for path, raw in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(raw)
    return root


def checked(root: Path, vocabulary: dict[str, int] = LETTERS, **options: Any) -> tuple[dict[str, Any], Path]:
    """The report, and where what training reads lies."""
    into = root.parent / f"{root.name}-prepared"
    into.mkdir(exist_ok=True)
    (into / "vocab.json").write_text(json.dumps(vocabulary))
    card = Card(
        name="toy",
        folder=root,
        task="speech-recognition",
        source={"kind": "file"},
        input={"window_s": 2, "overlap_s": 0.5},
        about={"licence": "x"},
    )
    return check(root, card, {"vocab.json": into / "vocab.json"}, into, **{"validation": 0.25, "seed": 0} | options), into


def told(report: dict[str, Any]) -> dict[str, str]:
    return {problem["where"]: problem["what"] for problem in report["problems"]}


def test_recordings_are_decoded_once_and_the_given_split_is_kept(tmp_path: Path):
    rows = ["file,text,split", "a/1.wav,one,train", "a/2.wav,Two one,", "a/3.wav,ONE,val"]
    root = lay(tmp_path / "data", rows, {f"a/{n}.wav": tone(100 * n, n / 4) for n in (1, 2, 3)})
    report, into = checked(root)
    assert report["problems"] == []
    assert report["train"] == {"recordings": 2, "seconds": 0.8, "words": 3}
    assert report["val"] == {"recordings": 1, "seconds": 0.8, "words": 1}
    assert report["warnings"] == ["2 transcripts were put into the case of the model's vocabulary"]
    parts = prepared(into)
    assert [(len(sound), text) for sound, text in parts["train"]] == [(4000, "ONE"), (8000, "TWO ONE")]
    assert parts["val"][0][0].dtype == np.float32 and abs(float(np.abs(parts["val"][0][0]).max()) - 0.3) < 0.01
    assert (into / "sample.wav").read_bytes() == tone(300, 0.75)


def test_everything_is_told_at_once_by_line(tmp_path: Path):
    rows = [
        "file,transcript,split",
        "good.wav,ONE,train",
        "gone.wav,ONE,train",
        "../up.wav,ONE,train",
        "broken.wav,ONE,train",
        "silent.wav,ONE,train",
        "long.wav,ONE,train",
        "empty.wav,,train",
        'strange.wav,"One, 2",train',
        "later.wav,ONE,later",
        "short.wav,ONE TWO ONE TWO ONE,train",
        "good.wav,TWO,train",
        "comma.wav,ONE,train,TWO",
    ]
    files = {f"{name}.wav": tone(100 + n) for n, name in enumerate(["good", "empty", "strange", "later", "comma"])}
    files |= {
        "broken.wav": b"no sound",
        "silent.wav": tone(100, loudness=0),
        "long.wav": tone(100, 3),
        "short.wav": tone(99, 0.2),
    }
    report, into = checked(lay(tmp_path / "data", rows, files))
    found = {where.removeprefix("transcripts.csv:"): what for where, what in told(report).items()}
    assert found["3"] == "'gone.wav' is not in the archive" and found["4"] == "'../up.wav' is not in the archive"
    assert found["5"].startswith("broken.wav: these bytes are no recording")
    assert found["6"].startswith("silent.wav: the recording is silent")
    assert found["7"] == "long.wav lasts more than 2 s, which the model hears at once"
    assert found["8"] == "has no transcript"
    assert found["9"] == "the model's vocabulary cannot spell ',', '2'"
    assert found["10"] == "split 'later' is unknown"
    assert found["11"] == "short.wav lasts 0.20 s, too short for 19 characters"
    assert found["12"] == "has another transcript than the same recording at transcripts.csv:2"
    assert found["13"] == "has more fields than there are columns"
    assert len(report["problems"]) == 11 and not list(into.glob("sample.*"))
    remedies = {problem["where"]: problem["remedy"] for problem in report["problems"]}
    assert remedies["transcripts.csv:9"] == "write it with the letters ' E N O T W"


@pytest.mark.parametrize("error", [av.error.MemoryError(12, "Cannot allocate memory"), MemoryError()], ids=["FFmpeg", "NumPy"])
def test_a_recording_that_asks_for_too_much_memory_is_told_by_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    large = tone(440)

    def decode(raw: bytes, *how: Any) -> np.ndarray:
        if raw == large:
            raise error
        return read_audio(raw, *how)

    monkeypatch.setattr(transcripts, "read_audio", decode)
    rows = ["file,transcript", "large.wav,one", *(f"{number}.wav,two" for number in range(4))]
    files = {f"{number}.wav": tone(500 + number) for number in range(4)}
    report, _ = checked(lay(tmp_path / "data", rows, files | {"large.wav": large}))
    assert told(report) == {"transcripts.csv:2": "large.wav takes more memory to decode than there is"}


def test_words_that_the_vocabulary_lacks_are_named(tmp_path: Path):
    root = lay(tmp_path / "data", ["file,transcript", "a.wav,one ten", "b.wav,two"], {"a.wav": tone(1000), "b.wav": tone(200)})
    report, _ = checked(root, WORDS)
    assert told(report) == {"transcripts.csv:2": "the model's vocabulary cannot spell 'TEN'"}
    assert report["problems"][0]["remedy"] == "write it with its words: ONE, TWO"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["name,words", "a.wav,ONE"], "its columns are name, words; file and transcript cannot be found"),
        (["file,transcript"], "there is no recording to train on"),
        (["file,transcript", "a.wav,ONE"], "there is one recording"),
        (["file,transcript,split", "a.wav,ONE,val"], "there is no recording to train on"),
    ],
)
def test_tables_that_do_not_suffice(tmp_path: Path, rows: list[str], what: str):
    assert list(told(checked(lay(tmp_path / "data", rows, {"a.wav": tone(100)}))[0]).values()) == [what]


def test_an_archive_without_a_table_is_told_what_belongs_there(tmp_path: Path):
    root = lay(tmp_path / "data", [], {"a.wav": tone(100)}, "readme.txt")
    assert told(checked(root)[0]) == {".": "there is no transcripts.csv"}


def test_what_does_not_hinder_is_a_warning(tmp_path: Path):
    rows = ["file,transcript,split", "a.wav,ONE,train", "b.wav,ONE,val", "c.wav,TWO,val"]
    files = {"a.wav": tone(100), "b.wav": tone(100), "c.wav": tone(300), "d.mp3": b"x", "notes.txt": b"x"}
    report, _ = checked(lay(tmp_path / "data", rows, files))
    assert report["problems"] == [] and report["warnings"] == [
        "1 recordings have no transcript and are not used: d.mp3",
        "1 words of val are not said in train: TWO",
        "1 recordings of val are also in train: what is measured is too kind by their share",
    ]


def test_a_split_is_seeded_and_each_part_hears_all_words(tmp_path: Path):
    texts = ["ONE", "TWO", "ONE TWO", "TWO TOO"] + ["ONE", "TWO"] * 8
    rows = ["file,transcript", *(f"{n}.wav,{text}" for n, text in enumerate(texts))]
    root = lay(tmp_path / "data", rows, {f"{n}.wav": tone(100 + n) for n in range(len(texts))})
    found = []
    for seed in range(6):
        report, into = checked(root, seed=seed)
        parts = {part: [text for _, text in clips] for part, clips in prepared(into).items()}
        assert report["warnings"] == [] and len(parts["val"]) == 5 and "TWO TOO" in parts["train"]
        assert {word for text in parts["val"] for word in text.split()} == {"ONE", "TWO"}
        found.append((into / "val.f32").read_bytes())
    checked(root, seed=5)
    assert found[5] == (into / "val.f32").read_bytes() and len(set(found)) > 1


def test_the_same_recording_again_stays_on_the_side_of_the_first(tmp_path: Path):
    rows = ["file,transcript", *(f"{n}.wav,{'ONE' if n % 2 else 'TWO'}" for n in range(24))]
    root = lay(tmp_path / "data", rows, {f"{n}.wav": tone(100 + n % 12) for n in range(24)})
    for seed in range(4):
        report, _ = checked(root, seed=seed)
        assert report["problems"] == [] and report["warnings"] == [] and report["val"]["recordings"] == 6


def test_several_tables_are_parts_by_their_names_unless_one_is_the_transcripts(tmp_path: Path):
    root = lay(
        tmp_path / "data", ["file,transcript", "a.wav,ONE", "b.wav,TWO"], {f"{n}.wav": tone(100) for n in "e"}, "train.csv"
    )
    lay(root, ["file,transcript", "c.wav,ONE"], {f"{n}.wav": tone(ord(n)) for n in "abcd"}, "val.csv")
    lay(root, ["file,transcript", "d.wav,ONE"], {}, "test.csv")
    report, _ = checked(root)
    assert report["problems"] == [] and (report["train"]["recordings"], report["val"]["recordings"]) == (2, 1)
    assert report["warnings"] == [
        "1 rows of test are left alone: val chooses the best weights",
        "1 recordings have no transcript and are not used: e.wav",
    ]
    lay(root, ["file,transcript", "c.wav,ONE", "d.wav,ONE", "e.wav,ONE"], {})
    report, _ = checked(root)
    assert report["train"]["recordings"] == 2 and "not read: test.csv, train.csv, val.csv" in report["warnings"]


def test_a_table_is_found_in_capitals(tmp_path: Path):
    rows = ["file,transcript", "a.wav,ONE", "b.wav,ONE"]
    root = lay(tmp_path / "data", rows, {"a.wav": tone(100), "b.wav": tone(200)}, "TRANSCRIPTS.CSV")
    (root / "another.csv").write_text("x,y\n")
    assert checked(root)[0]["problems"] == []
