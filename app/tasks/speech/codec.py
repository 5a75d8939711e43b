"""Recording → windows, CTC frames → words. Greedy decoding, as transformers' Wav2Vec2CTCTokenizer, but for vocabularies of whole
words: their tokens are words without a `|` between them, where that would make one word of two.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from app.card import Card
from app.tasks.base import Decoded, Files, Output, Recipe, Sample
from app.tasks.speech.audio import read_audio
from app.tasks.speech.input import SpeechInput

HOP = 320  # samples between two frames of every Wav2Vec2 (arXiv:2006.11477, §4.2)
SPACE = "|"
SPECIAL = {"<pad>", "<s>", "</s>", "<unk>"}


@dataclass(frozen=True, slots=True)
class _Window:
    """Where a window lies, in samples, and how many frames of each side belong to its neighbours."""

    start: int
    end: int
    drop_left: int
    keep_until: int | None


class SoundReader:
    """Recording → windows; `max_seconds` bounds it."""

    seconds_each = 0.02  # half an hour of Opus in stereo: 9.5 s

    def __init__(self, input: SpeechInput, max_seconds: float) -> None:
        self._input = input
        self._max_seconds = max_seconds

    @staticmethod
    def prepare() -> None:
        """PyAV comes whole."""

    def decode(self, item: bytes) -> Decoded:
        """A recording → one sample per window: `waveform` float32 [T] at 16 kHz, cost in seconds."""
        rate = self._input.sampling_rate
        waveform = read_audio(item, rate, self._max_seconds)
        windows = cut(len(waveform), round(self._input.window_s * rate), round(self._input.overlap_s * rate))
        samples = tuple(self._sample(waveform[window.start : window.end]) for window in windows)
        kept = [(window.drop_left, window.keep_until) for window in windows]
        return Decoded(samples=samples, info={"kept": kept, "duration_s": len(waveform) / rate})

    def _sample(self, wave: np.ndarray) -> Sample:
        if self._input.normalize:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)  # as Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm
        return Sample(arrays={"waveform": wave.astype(np.float32, copy=False)}, cost=len(wave) / self._input.sampling_rate)


class SpeechCodec(SoundReader):
    """The codec of CTC models."""

    def __init__(self, card: Card, files: Files, meta: dict[str, Any], max_seconds: float = 1800) -> None:
        super().__init__(SpeechInput(**card.input), max_seconds)
        self.recipe = Recipe(card.task, self._input.model_dump_json(), max_seconds)
        vocabulary: dict[str, int] = json.loads(files["vocab.json"].read_text(encoding="utf-8"))
        self._tokens = {index: token for token, index in vocabulary.items()}
        self._blank = vocabulary["<pad>"]
        self._whole_words = of_words(usable(vocabulary))

    def light(self, item: bytes) -> bool:
        """Never: sound takes milliseconds."""
        return False

    def interpret(self, decoded: Decoded, outputs: Sequence[Output], *, words: bool = False) -> dict[str, Any]:
        """`text`, `duration_s`, and with `words` each word's `start_s`, `end_s` and `score` (mean probability of its letters)."""
        kept = [
            (
                output["token_ids"][drop_left:keep_until],
                output["token_scores"][drop_left:keep_until],
            )
            for (drop_left, keep_until), output in zip(decoded.info["kept"], outputs, strict=True)
        ]
        ids, scores = (np.concatenate(part) for part in zip(*kept, strict=True))
        letters = list(self._letters(ids, scores))
        text = "".join(letter for letter, *_ in letters).strip()
        answer: dict[str, Any] = {"text": text, "duration_s": round(decoded.info["duration_s"], 3)}
        if words:
            answer["words"] = list(self._words(letters))
        return answer

    def _letters(self, ids: np.ndarray, scores: np.ndarray) -> Any:
        """(letter, first frame, last frame, score) after merging repeats and dropping blanks."""
        frame = 0
        before = " "
        for index, run in groupby(ids.tolist()):
            length = len(list(run))
            token = self._tokens.get(index, "")
            if index != self._blank and token not in SPECIAL:
                letter = " " if token == SPACE else token
                if self._whole_words and " " not in (before, letter):
                    yield " ", frame, frame, 1.0
                before = letter
                yield letter, frame, frame + length, float(scores[frame : frame + length].mean())
            frame += length

    def _words(self, letters: list[tuple[str, int, int, float]]) -> Any:
        frame_s = HOP / self._input.sampling_rate
        for is_space, run in groupby(letters, key=lambda letter: letter[0] == " "):
            if not is_space:
                word = list(run)
                yield {
                    "word": "".join(letter for letter, *_ in word),
                    "start_s": round(word[0][1] * frame_s, 3),
                    "end_s": round(word[-1][2] * frame_s, 3),
                    "score": round(sum(score for *_, score in word) / len(word), 4),
                }


def usable(vocabulary: Iterable[str]) -> set[str]:
    """The tokens that spell: neither the blank and its like nor the space."""
    return set(vocabulary) - SPECIAL - {SPACE}


def of_words(tokens: Collection[str]) -> bool:
    """Whether these tokens, which spell, are whole words alone."""
    return all(len(token) > 1 for token in tokens)


def cut(samples: int, window: int, overlap: int) -> list[_Window]:
    """Windows over `samples`: each hears `overlap` samples beyond its own part on every inner side.

    The kept frames of all windows, joined, are the frames of the whole recording: none twice, none missing
    (P. von Platen and N. Patry, "Making automatic speech recognition work on large files with Wav2Vec2").
    """
    window, overlap = window // HOP * HOP, overlap // HOP * HOP
    if samples <= window:
        return [_Window(0, samples, 0, None)]
    step, windows = window - 2 * overlap, []
    for start in range(0, samples, step):
        end = min(start + window, samples)
        last = end == samples
        keep_until = None if last else (window - overlap) // HOP
        windows.append(_Window(start, end, overlap // HOP if start else 0, keep_until))
        if last:
            break
    return windows
