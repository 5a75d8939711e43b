"""Recordings → utterances to train on: at other speeds, several joined, through a random equaliser, with noise. No torch.

So that voices and microphones which the data lacks do not surprise the model. All utterances of a batch have one length, and the
lengths are few: oneDNN compiles its kernels anew for every shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Clip = tuple[np.ndarray, str]
"""Mono float32 at 16 kHz, and what is said."""

RATE = 16000
_STEP = 1.5  # between two lengths of `Mix.of`
_SHORT_S = 2.0  # recordings no longer than this, half of them, are words rather than sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What an utterance is made of. Lengths are in samples; a batch has one of `alone` or of `joined`, all equally likely."""

    alone: Sequence[int]
    """Of utterances that are one recording, without pauses around it."""
    joined: Sequence[int] = ()
    """Of those that are several with pauses."""
    share_alone: float = 1.0
    """Of the batches."""
    most: int = 1
    """Recordings in one utterance."""
    speed: tuple[float, float] = (0.8, 1.25)
    """A recording alone is played at the speed that fills the time, if that lies between these."""
    longest_joined: float = float("inf")
    """Recordings longer than this are heard alone only."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Mix:
        """For recordings of these lengths. Every one is near a length of `alone`, and each length as likely as its recordings."""
        sizes = np.asarray(lengths)
        steps = np.round(np.log(sizes.max() / sizes) / np.log(_STEP))
        alone = np.round(sizes.max() / _STEP**steps).astype(int).tolist()
        middle = float(np.median(sizes))
        if middle > _SHORT_S * RATE:
            return cls(alone=alone)
        joined = [round(times * middle) for times in (2.5, 3.75, 5.0)]
        return cls(alone=alone, joined=joined, share_alone=0.5, most=4, speed=(0.7, 1.4), longest_joined=1.5 * middle)


class Utterances:
    """Makes them. All randomness is given."""

    def __init__(self, clips: Sequence[Clip], mix: Mix, *, augment: bool = True) -> None:
        """`augment`: else each recording alone, as it sounds, but for the speed."""
        self._clips = clips
        self._short = [clip for clip in clips if len(clip[0]) <= mix.longest_joined]
        self._mix = mix
        self._alone = np.array(mix.alone)
        self._joined = np.array(mix.joined)
        self._augment = augment
        self._share_alone, self._most = (mix.share_alone, mix.most) if augment else (1.0, 1)

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch, which hears about as many recordings as there are."""
        return max(1, round(len(self._clips) / ((1 + self._most) / 2) / batch_size))

    def batch(self, batch_size: int, random: np.random.Generator) -> list[Clip]:
        """So many utterances of one length."""
        alone = random.random() < self._share_alone
        samples = int(random.choice(self._alone if alone else self._joined))
        make = self._one if alone else self._several
        return [make(samples, random) for _ in range(batch_size)]

    def _one(self, samples: int, random: np.random.Generator) -> Clip:
        """One recording, as tightly cut as the data set has it, at the speed that fills the time."""
        slowest, fastest = self._mix.speed
        while True:
            wave, text = self._clips[int(random.integers(len(self._clips)))]
            if slowest <= (factor := len(wave) / samples) <= fastest:
                wave = _speed(wave, factor)[:samples]
                return self._heard(np.pad(wave, (0, samples - len(wave))), random), text

    def _several(self, samples: int, random: np.random.Generator) -> Clip:
        """Recordings with pauses, by one voice, until the time is filled."""
        parts: list[np.ndarray] = []
        words: list[str] = []
        free, voice = samples, random.uniform(0.8, 1.25)
        while free > 0 and len(words) < self._most:
            pause = np.zeros(int(RATE * random.exponential(0.1)), np.float32)
            wave, text = self._short[int(random.integers(len(self._short)))]
            wave = _level(_speed(wave, voice * random.uniform(0.95, 1.05)), random)
            free -= len(pause) + len(wave)
            if free >= 0 or not words:
                parts += [pause, wave]
                words.append(text)
        whole = np.concatenate(parts)[:samples]
        return self._heard(np.pad(whole, (0, samples - len(whole))), random), " ".join(words)

    def _heard(self, wave: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _room(wave, random) if self._augment else wave


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
    size = 1 << int(np.ceil(np.log2(len(wave) + RATE // 4)))
    frequency = np.linspace(0, 1, size // 2 + 1)
    bands = np.linspace(0, 1, 8)
    gain: np.ndarray = 10 ** (np.interp(frequency, bands, random.uniform(-8, 8, 8)) / 20)
    if random.random() < 0.3:
        tail = random.standard_normal(RATE // 5) * np.exp(-np.arange(RATE // 5) / (RATE * random.uniform(0.01, 0.06)))
        tail[0] = random.uniform(4, 12)
        gain = gain * np.fft.rfft(tail / tail[0], size)
    heard = np.fft.irfft(np.fft.rfft(wave, size) * gain, size)[: len(wave)]
    tilt = 10 ** (np.interp(frequency, bands, random.uniform(-12, 12, 8)) / 20)
    noise = np.fft.irfft(np.fft.rfft(random.standard_normal(size)) * tilt, size)[: len(wave)]
    below = 10 ** (-random.uniform(10, 50) / 20)
    noisy: np.ndarray = (heard + noise / noise.std() * heard.std() * below).astype(np.float32)
    return noisy
