"""Recordings and a table of what is said in them, as a caller sent them → what to train on, and everything that is wrong with it.

Understood: `transcripts.csv` with the columns `file`, `transcript` (or `text`) and, if wanted, `split` (train or val); or a CSV
for each part. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from app.card import Card
from app.errors import HearthError, Invalid, TooLarge
from app.tasks import table
from app.tasks.base import Files
from app.tasks.findings import Findings, originals
from app.tasks.speech.audio import read_audio
from app.tasks.speech.codec import HOP, SPACE, of_words, usable
from app.tasks.speech.input import SpeechInput
from app.tasks.speech.utterances import Clip
from app.tasks.table import Part, some

_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aiff", ".aif"}


@dataclass(frozen=True, slots=True)
class Recording:
    """One row: `where` it stands, its file, and what is said, in the vocabulary's case."""

    where: str
    path: Path
    text: str
    frames: int
    """The fewest that it can be told in: one for each token, and one between two that are alike (Graves et al. 2006)."""


@dataclass(slots=True)
class Found(Findings):
    """What a data set holds."""

    parts: dict[Part, list[Recording]] = field(default_factory=lambda: {"train": [], "val": []})
    seconds: dict[Part, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """As a job shows it."""
        counts: dict[str, Any] = {
            part: {
                "recordings": len(recordings),
                "seconds": round(self.seconds.get(part, 0.0), 1),
                "words": sum(len(recording.text.split()) for recording in recordings),
            }
            for part, recordings in self.parts.items()
        }
        return {**counts, **self.told()}


def check(root: Path, card: Card, files: Files, into: Path, *, validation: float, seed: int) -> dict[str, Any]:
    """Find and decode everything in `root`; returns the report (`app/tasks/__init__.py: Check`)."""
    if "vocab.json" not in files:
        raise Invalid(f"{card.name}: its vocab.json is missing, which says what can be written; put it beside the card")
    found = find(root, usable(json.loads(files["vocab.json"].read_text(encoding="utf-8"))), validation, seed)
    prepare(found, card, into)
    if not found.problems:
        by_size = sorted(found.parts["val"], key=lambda recording: recording.path.stat().st_size)
        sample = by_size[len(by_size) // 2].path  # neither the shortest, which may be odd, nor long to wait for
        suffix = sample.suffix.lower()
        (into / f"sample{suffix if suffix in _SUFFIXES else '.wav'}").write_bytes(sample.read_bytes())
    return found.report()


def find(root: Path, vocabulary: Collection[str], validation: float, seed: int) -> Found:
    """What the table says. Without a split of its own, that share of the recordings is kept out."""
    found, root = Found(), root.resolve()
    tables = table.tables(root)
    listed = [path for path in tables if path.name.lower() == "transcripts.csv"] or tables
    if not listed:
        found.wrong(".", "there is no transcripts.csv", "add one with the columns file and transcript")
        return found
    case = case_of(vocabulary)
    table.not_read([path.name for path in tables if path not in listed], found)
    changed = 0
    others = {path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES}
    for row in table.read(listed, {"file": "file", "transcript": "transcript", "text": "transcript"}, found):
        name, text = row.fields["file"], case(row.fields["transcript"])
        path = table.inside(root, name)
        others -= {path}
        if row.part is None:
            continue
        changed += text != row.fields["transcript"]
        if path is None:
            found.wrong(row.where, f"{name!r} is not in the archive", "write the path as it is inside the archive")
        if not text:
            found.wrong(row.where, "has no transcript", "write what is said, or take the row out")
        _spell(text, row.where, vocabulary, found)
        if path is not None:  # whatever is wrong with its text, what is wrong with its sound is told, too
            tokens = spelled(text, vocabulary)
            frames = len(tokens) + sum(one == other for one, other in pairwise(tokens))
            found.parts[row.part].append(Recording(row.where, path, " ".join(text.split()), frames))
    if changed:
        found.warnings.append(f"{changed} transcripts were put into the case of the model's vocabulary")
    table.unnamed([str(path.relative_to(root)) for path in others], "recordings have no transcript", found)
    if not found.problems:
        _divide(found, validation, seed)
    return found


def spelled(text: str, vocabulary: Collection[str]) -> list[str]:
    """Whole words where the vocabulary has them, else letters, with `|` between words; of a vocabulary of words, those alone."""
    if of_words(vocabulary):
        return text.split()
    tokens: list[str] = []
    for word in text.split():
        tokens += [SPACE, *([word] if word in vocabulary else word)]
    return tokens[1:]


def case_of(vocabulary: Collection[str]) -> Callable[[str], str]:
    """What puts a text into the one case that the vocabulary has, if it has but one."""
    letters = "".join(vocabulary)
    if letters == letters.upper():
        return str.upper
    return str.lower if letters == letters.lower() else str


def _spell(text: str, where: str, vocabulary: Collection[str], found: Found) -> None:
    letters = sorted(token for token in vocabulary if len(token) == 1)
    unknown: list[str] = []
    for word in text.split():
        if word not in vocabulary and (strange := [letter for letter in word if letter not in vocabulary]):
            unknown += strange if letters else [word]
    if unknown:
        what = f"the model's vocabulary cannot spell {some([repr(one) for one in dict.fromkeys(unknown)])}"
        has = f"the letters {' '.join(letters)}" if letters else f"its words: {some(sorted(vocabulary), 20)}"
        found.wrong(where, what, f"write it with {has}")


def _divide(found: Found, validation: float, seed: int) -> None:
    """Where the table has no split of its own: make one. What hinders learning is told."""
    train, val = found.parts["train"], found.parts["val"]
    if train and not val:
        first = originals([recording.path for recording in train])
        once = sorted(set(first))
        if len(once) < 2:
            found.wrong(".", "there is one recording", "give at least two: one to learn from, one to check with")
        kept_out = {once[place] for place in split([train[place] for place in once], validation, seed)}
        found.parts["train"] = [one for one, place in zip(train, first, strict=True) if place not in kept_out]
        found.parts["val"] = [one for one, place in zip(train, first, strict=True) if place in kept_out]
    elif not train:
        found.wrong(".", "there is no recording to train on", "give some the split train")
    train, val = found.parts["train"], found.parts["val"]
    unheard = sorted(_words(val).keys() - _words(train).keys())
    if unheard and train:
        found.warnings.append(f"{len(unheard)} words of val are not said in train: {some(unheard)}")


def split(recordings: list[Recording], validation: float, seed: int) -> set[int]:
    """Which are kept out, seeded: of each transcript that is said repeatedly about the same share; then those whose words are
    said elsewhere, too; the others, as far as it takes them to fill the share, last.
    """
    order = np.random.default_rng(seed).permutation(len(recordings)).tolist()
    by_text: dict[str, list[int]] = defaultdict(list)
    for place in order:
        by_text[recordings[place].text].append(place)
    turn = {place: (rank + 1) / (len(alike) + 1) for alike in by_text.values() for rank, place in enumerate(alike)}
    order.sort(key=turn.__getitem__)
    wanted = min(len(recordings) - 1, max(1, round(validation * len(recordings))))
    left = _words(recordings)
    kept_out: list[int] = []
    last: list[int] = []
    for place in order:
        words = set(recordings[place].text.split())
        if len(kept_out) < wanted and all(left[word] > 1 for word in words):
            left.subtract(words)
            kept_out.append(place)
        else:
            last.append(place)
    return {*kept_out, *last[: wanted - len(kept_out)]}


def _words(recordings: Iterable[Recording]) -> Counter[str]:
    """In how many recordings each word is said."""
    return Counter(word for recording in recordings for word in set(recording.text.split()))


def prepare(found: Found, card: Card, into: Path) -> None:
    """Decode all once: `{train,val}.f32`, the samples of all, and `{train,val}.json`, where each ends and what is said.

    Notes what cannot be read, is longer than the model hears at once, or too short for what is said; and repetitions.
    """
    wanted = SpeechInput(**card.input)
    seen: dict[str, tuple[Part, Recording]] = {}
    across = 0
    for part, recordings in found.parts.items():
        ends: list[tuple[int, str]] = []
        end = 0
        with (into / f"{part}.f32").open("wb") as sink:
            for recording in recordings:
                raw = recording.path.read_bytes()
                before, other = seen.setdefault(hashlib.sha256(raw).hexdigest(), (part, recording))
                if other.text != recording.text:
                    found.wrong(recording.where, f"has another transcript than the same recording at {other.where}", "keep one")
                across += before != part
                if (wave := _read(recording, raw, wanted, found)) is not None:
                    end += len(wave)
                    ends.append((end, recording.text))
                    sink.write(wave.tobytes())
        (into / f"{part}.json").write_text(json.dumps(ends), encoding="utf-8")
        found.seconds[part] = end / wanted.sampling_rate
    if across:
        found.warnings.append(f"{across} recordings of val are also in train: what is measured is too kind by their share")


def _read(recording: Recording, raw: bytes, wanted: SpeechInput, found: Found) -> np.ndarray | None:
    name = recording.path.name
    try:
        wave = read_audio(raw, wanted.sampling_rate, wanted.window_s)
    except TooLarge:
        found.wrong(recording.where, f"{name} lasts more than {wanted.window_s:g} s, which the model hears at once", "cut it")
        return None
    except HearthError as error:
        found.wrong(recording.where, f"{name}: {error.detail}", "repair it, or take the row out")
        return None
    except MemoryError:  # FFmpeg's, too: a damaged one may ask for gigabytes; that the rest is fine shall not be lost with it
        found.wrong(recording.where, f"{name} takes more memory to decode than there is", "repair it, or take the row out")
        return None
    if len(wave) // HOP < recording.frames:
        told = f"{name} lasts {len(wave) / wanted.sampling_rate:.2f} s, too short for {len(recording.text)} characters"
        found.wrong(recording.where, told, "check whether it is the right recording")
    return wave


def prepared(folder: Path) -> dict[str, list[Clip]]:
    """What `prepare` wrote, mapped into memory."""
    parts: dict[str, list[Clip]] = {}
    for part in ("train", "val"):
        samples = np.asarray(np.memmap(folder / f"{part}.f32", np.float32, "r"))
        ends: list[tuple[int, str]] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        starts = [0, *(end for end, _ in ends)]
        parts[part] = [(samples[start:end], text) for start, (end, text) in zip(starts, ends, strict=False)]
    return parts
