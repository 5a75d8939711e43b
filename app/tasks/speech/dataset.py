"""Spoken digits with transcripts, for the trainer: the Free Spoken Digit Dataset's zip of `{digit}_{speaker}_{index}.wav`.

Training utterances are made on the fly: one to four digits with pauses, each digit at its own speed, the whole through a
random equaliser, with noise, so that voices and microphones which the data lacks do not surprise the model.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.card import Card
from app.errors import BadInput, HearthError
from app.tasks.base import Batch, device_of
from app.tasks.speech import network
from app.tasks.speech.audio import read_audio
from app.tasks.speech.codec import SpeechCodec
from app.tasks.speech.program import SpeechProgram

Clip = tuple[np.ndarray, str]
"""Mono float32 at 16 kHz, and what is said."""

_WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav$")
_MOST_DIGITS = 4
_RATE = 16000
_ALONE = (5120, 6400, 8000)  # samples: the middle half of the clips
_LENGTHS = (16000, 24000, 32000)  # one per batch, and few: oneDNN compiles its kernels anew for every shape


class SpeechDataset:
    """Clips for training and clips kept out, by speaker or by recording."""

    labels: Sequence[str] = ()

    def __init__(self, train: Sequence[Clip], held_out: Sequence[Clip], card: Card, *, alone: float = 0.5) -> None:
        """`alone`: share of the batches whose utterances are single digits without pauses."""
        if not train or not held_out:
            raise BadInput("the split leaves no clips for training or none for measuring; check hold_out in tune.toml")
        self._train = train
        self._alone = alone
        self._held_out = held_out
        files = {"vocab.json": card.folder / "vocab.json"}
        self._tokens: dict[str, int] = json.loads(files["vocab.json"].read_text())
        self._codec = SpeechCodec(card, files, {})
        self._program = SpeechProgram(card, files)

    @classmethod
    def open(cls, path: Path, card: Card, hold_out: Sequence[str] = (), alone: float = 0.5) -> SpeechDataset:
        """Read the zip. `hold_out` names speakers kept out of training; empty: each speaker's recordings 0 to 4 are kept out.

        Raises BadInput naming the file and what is wrong with it.
        """
        train: list[Clip] = []
        held_out: list[Clip] = []
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if not (match := _NAME.search(name)):
                        continue
                    digit, speaker, index = int(match[1]), match[2], int(match[3])
                    clip = read_audio(archive.read(name), _RATE, 60), _WORDS[digit]
                    kept_out = speaker in hold_out if hold_out else index < 5
                    (held_out if kept_out else train).append(clip)
        except (OSError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is not a readable zip ({error}); download it again") from error
        except HearthError as error:
            raise BadInput(f"{path}, {name}: {error.detail}") from error
        return cls(train, held_out, card, alone=alone)

    def steps(self, batch_size: int) -> int:
        """An epoch hears about as many digits as there are clips."""
        return max(1, round(len(self._train) / ((1 + _MOST_DIGITS) / 2) / batch_size))

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[Batch]:
        """`waveform`, `samples` as the program collates them; `target` int64 [sum of lengths], `lengths` int64 [B]."""
        random = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        for _ in range(self.steps(batch_size)):
            alone = random.random() < self._alone
            samples = int(random.choice(_ALONE if alone else _LENGTHS))
            make = self._digit if alone else self._utterance
            yield self._collate([make(samples, random) for _ in range(batch_size)])

    def prepare(self, module: nn.Module) -> None:
        """Start the first convolution as windowed cosines in four phases along the mel scale (arXiv:1711.01161); it learns on."""
        first: Any = cast(Any, module).wav2vec2.feature_extractor.conv_layers[0].conv
        count, _, width = first.weight.shape
        mel = torch.linspace(2595 * math.log10(1 + 80 / 700), 2595 * math.log10(1 + 4000 / 700), count // 4)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        time = (torch.arange(width) - (width - 1) / 2) / _RATE
        phase = torch.arange(4) * (math.pi / 2)
        waves = torch.cos(2 * math.pi * hertz[:, None, None] * time + phase[:, None]).flatten(0, 1) * torch.hann_window(width)
        with torch.no_grad():
            first.weight[: len(waves), 0] = waves / waves.norm(dim=1, keepdim=True)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Connectionist temporal classification (Graves et al. 2006)."""
        logits, frames = network.logits(module, batch)
        return functional.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            batch["target"],
            frames,
            batch["lengths"],
            blank=self._tokens["<pad>"],
            zero_infinity=True,
        )

    def score(self, module: nn.Module) -> dict[str, float]:
        """Word error rate on the clips kept out, each heard alone."""
        errors = words = 0
        for wave, text in self._held_out:
            errors += edits(self.transcribe(module, wave).split(), text.split())
            words += len(text.split())
        return {"word_error_rate": errors / words}

    def transcribe(self, module: nn.Module, wave: np.ndarray) -> str:
        """What the server would answer."""
        arrays = self._codec._sample(wave).arrays
        with torch.inference_mode():
            batch = {
                name: torch.from_numpy(array).to(device_of(module)) for name, array in self._program.collate([arrays]).items()
            }
            found = self._program.forward(self._program.networks(module), batch)
        (output,) = self._program.split({name: tensor.cpu().numpy() for name, tensor in found.items()}, [arrays])
        return "".join(letter for letter, *_ in self._codec._letters(output["token_ids"], output["token_scores"])).strip()

    def _digit(self, samples: int, random: np.random.Generator) -> Clip:
        """One digit, as tightly cut as the data set has it, at the speed that fills the time."""
        while True:
            wave, text = self._train[int(random.integers(len(self._train)))]
            if 0.7 <= (factor := len(wave) / samples) <= 1.4:
                wave = _speed(wave, factor)[:samples]
                return _room(np.pad(wave, (0, samples - len(wave))), random), text

    def _utterance(self, samples: int, random: np.random.Generator) -> Clip:
        """Digits with pauses, by one voice, until the time is filled."""
        parts: list[np.ndarray] = []
        words: list[str] = []
        free, voice = samples, random.uniform(0.8, 1.25)
        while free > 0 and len(words) < _MOST_DIGITS:
            pause = np.zeros(int(_RATE * random.exponential(0.1)), np.float32)
            wave, text = self._train[int(random.integers(len(self._train)))]
            wave = _level(_speed(wave, voice * random.uniform(0.95, 1.05)), random)
            free -= len(pause) + len(wave)
            if free >= 0 or not words:
                parts += [pause, wave]
                words.append(text)
        whole = np.concatenate(parts)[:samples]
        return _room(np.pad(whole, (0, samples - len(whole))), random), " ".join(words)

    def _spell(self, text: str) -> list[int]:
        """Whole words where the vocabulary has them, else letters, with `|` between words."""
        spelled: list[str] = []
        for word in text.split():
            spelled += ["|", *([word] if word in self._tokens else word)]
        return [self._tokens[token] for token in spelled[1:]]

    def _collate(self, clips: Sequence[Clip]) -> Batch:
        arrays = [self._codec._sample(wave).arrays for wave, _ in clips]
        targets = [self._spell(text) for _, text in clips]
        return {
            **network.pad(arrays),
            "target": torch.tensor([index for target in targets for index in target]),
            "lengths": torch.tensor([len(target) for target in targets]),
        }


def edits(heard: Sequence[Any], said: Sequence[Any]) -> int:
    """Insertions, deletions and substitutions that turn one sequence into the other (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for i, left in enumerate(heard, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(said, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast: pitch and formants move with it, as between small and large speakers."""
    positions = np.arange(0, len(wave) - 1, factor, dtype=np.float32)
    heard: np.ndarray = np.interp(positions, np.arange(len(wave), dtype=np.float32), wave).astype(np.float32)
    return heard


def _level(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Unit loudness, within ±6 dB."""
    level: np.ndarray = wave / (wave.std() + 1e-6) * np.float32(10 ** (random.uniform(-6, 6) / 20))
    return level


def _room(wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A smooth random equaliser (±8 dB over eight bands), a fading echo, and coloured noise 10 to 50 dB below the speech."""
    size = 1 << int(np.ceil(np.log2(len(wave) + _RATE // 4)))
    frequency = np.linspace(0, 1, size // 2 + 1)
    bands = np.linspace(0, 1, 8)
    gain: np.ndarray = 10 ** (np.interp(frequency, bands, random.uniform(-8, 8, 8)) / 20)
    if random.random() < 0.3:
        tail = random.standard_normal(_RATE // 5) * np.exp(-np.arange(_RATE // 5) / (_RATE * random.uniform(0.01, 0.06)))
        tail[0] = random.uniform(4, 12)
        gain = gain * np.fft.rfft(tail / tail[0], size)
    heard = np.fft.irfft(np.fft.rfft(wave, size) * gain, size)[: len(wave)]
    tilt = 10 ** (np.interp(frequency, bands, random.uniform(-12, 12, 8)) / 20)
    noise = np.fft.irfft(np.fft.rfft(random.standard_normal(size)) * tilt, size)[: len(wave)]
    below = 10 ** (-random.uniform(10, 50) / 20)
    noisy: np.ndarray = (heard + noise / noise.std() * heard.std() * below).astype(np.float32)
    return noisy
