"""What is sent: a card's own sample, or a made text, picture or recording of a given size. The same bytes on every machine.

A model is named with or without a size: `bench-bert-base` sends its card's sample, `bench-bert-base@384` a text of 384 tokens,
`bench-wav2vec2@10` ten seconds, `resnet50@12` twelve megapixels.
"""

from __future__ import annotations

import io
import json
import random
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tokenizers import Tokenizer

from app.card import Card
from app.tasks.base import Files

_PATHS = {"image-classification": "/predict/image", "text-embedding": "/embed/text", "speech-recognition": "/transcribe"}
_WORDS = "the of and to in a is that for it with as was on by at from his he be this which river light house water road"
_MIX = ((0.60, 12), (0.25, 40), (0.10, 120), (0.05, 256))  # share of the texts, tokens
RATE = 16_000


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as HTTP and as the codec's item."""

    path: str
    body: bytes
    item: bytes | str

    def raw(self, address: str, key: str = "") -> bytes:
        """All its bytes on the wire."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {urlsplit(address).netloc}", f"Content-Length: {len(self.body)}"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        return "\r\n".join([*lines, "\r\n"]).encode() + self.body


def named(wanted: str) -> tuple[str, float]:
    """`name@size` → name, size; 0 without one."""
    name, _, size = wanted.partition("@")
    return name, float(size or 0)


def ask(card: Card, item: bytes | str, timeout_ms: int = 0) -> Call:
    """The request for one item of a card's task."""
    path = _PATHS[card.task]
    if isinstance(item, str):
        body = {"inputs": item, "model": card.name} | ({"timeout_ms": timeout_ms} if timeout_ms else {})
        return Call(path, json.dumps(body).encode(), item)
    return Call(f"{path}?model={card.name}" + (f"&timeout_ms={timeout_ms}" if timeout_ms else ""), item, item)


def item(card: Card, files: Files, size: float = 0) -> bytes | str:
    """Something of that size for a card, or its sample."""
    if size == 0:
        sample = next(card.folder.glob("sample.*"))
        if sample.suffix != ".json":
            return sample.read_bytes()
        inputs = json.loads(sample.read_text())["inputs"]
        return inputs if isinstance(inputs, str) else str(inputs[0])
    if card.task == "text-embedding":
        return text(files, int(size))
    return picture(size) if card.task == "image-classification" else speech(size)


def text(files: Files, tokens: int, seed: int = 0) -> str:
    """Exactly so many tokens, the special ones included, of short common words."""
    tokenizer, chance = _tokenizer(str(files["tokenizer.json"])), random.Random(seed)
    words: list[str] = []
    while (count := len(tokenizer.encode(" ".join(words)).ids)) < tokens:
        words += chance.choices(_WORDS.split(), k=max(1, (tokens - count) // 2))
    while len(tokenizer.encode(" ".join(words)).ids) > tokens:
        words.pop()
    return " ".join(words)


def mixed_texts(files: Files, count: int = 100, seed: int = 7) -> list[str]:
    """Texts of 12, 40, 120 and 256 tokens, most of them short, in a shuffled order that is always the same."""
    lengths = [tokens for share, tokens in _MIX for _ in range(round(share * count))]
    random.Random(seed).shuffle(lengths)
    return [text(files, tokens, seed + number) for number, tokens in enumerate(lengths)]


@cache
def picture(megapixels: float, seed: int = 0) -> bytes:
    """A JPEG, 4:3, like a photo to a decoder: soft gradients, shapes and film grain."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    chance = np.random.default_rng(seed)
    image = Image.fromarray(chance.integers(0, 255, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for x, y, w, h, *colour in chance.random((25, 7)):
        box = [x * width, y * height, (x + w / 4) * width, (y + h / 4) * height]
        draw.ellipse(box, fill=tuple(int(255 * part) for part in colour))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2))).astype(np.int16)
    grain = chance.normal(0, 9, (height, width, 1)).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


@cache
def speech(seconds: float, seed: int = 0) -> bytes:
    """A WAV, 16 kHz, like speech to a decoder: a gliding harmonic tone with pauses and noise."""
    chance, times = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * times + seed)) / RATE
    tone = np.sum([np.sin(n * phase) / n for n in range(1, 9)], axis=0)
    sound = tone * (np.sin(2 * np.pi * 2.3 * times) > 0) + 0.05 * chance.standard_normal(len(times))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound / np.abs(sound).max() * 20_000).astype("<i2").tobytes())
    return out.getvalue()


def tokens_of(files: Files, texts: Sequence[str]) -> list[int]:
    """How many each has."""
    return [len(one.ids) for one in _tokenizer(str(files["tokenizer.json"])).encode_batch(list(texts))]


@cache
def _tokenizer(path: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
