"""Text → token ids; embedding, or scores → answer. The `tokenizers` library does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.card import Card
from app.errors import Invalid, TooLarge
from app.tasks.base import Decoded, Files, Output, Sample, unit
from app.tasks.labels import best, read_labels
from app.tasks.text.input import TextInput

# A longer text cannot have few enough tokens unless its words are longer than any that people write; it is refused unread.
_MOST_CHARACTERS_PER_TOKEN = 100
# Characters. WordPiece's time grows with the square of a word's length, up to a hundred letters.
_LIGHT = 500  # 0.2 ms of tokenising; in Chinese 0.5, of words of a hundred letters 1.1
_LIGHT_IF_USUAL, _LONG_WORD = 2000, 40  # 0.7 ms; 1.1 where each is a mark, 1.9 of words of forty letters


class TextCodec:
    """The codec of text embeddings. `tokenizer.json` is read once; encoding is thread-safe."""

    recipe = None

    def __init__(self, card: Card, files: Files, meta: dict[str, Any]) -> None:
        self.max_tokens = min(TextInput(**card.input).max_tokens, meta.get("max_tokens") or 1 << 30)
        self._dimensions = meta.get("dimensions") or 1 << 30
        written = files["tokenizer.json"].read_bytes()
        self._tokenizer: Tokenizer = Tokenizer.from_buffer(written)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cutting: Tokenizer = Tokenizer.from_buffer(written)
        self._cutting.no_padding()
        self._cutting.enable_truncation(self.max_tokens)

    def light(self, item: str) -> bool:
        """All but long texts, and those a bit long whose words are."""
        return len(item) < _LIGHT or (
            len(item) < _LIGHT_IF_USUAL and item.isascii() and max(map(len, item.split()), default=0) <= _LONG_WORD
        )

    def decode(self, item: str, *, truncate: bool = False, dimensions: int | None = None) -> Decoded:
        """A text → one sample: `input_ids` int64 [T], cost T. Raises Invalid, and TooLarge unless `truncate`.

        `dimensions`: what `interpret` will be asked for, so that too many are refused before anything is computed.
        """
        _not_more(dimensions, self._dimensions)
        if not item.strip():
            raise Invalid("the text is empty; send at least one character that is not white space")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"the text has half of a surrogate pair at character {error.start}; send valid Unicode") from error
        most = self.max_tokens * _MOST_CHARACTERS_PER_TOKEN
        if len(item) > most and not truncate:
            raise TooLarge(
                f"the text has {len(item):,} characters; the limit is {self.max_tokens} tokens: "
                "shorten it, send it in parts, or set truncate to true"
            )
        tokenizer = self._cutting if truncate else self._tokenizer
        ids = tokenizer.encode(item[:most]).ids
        if len(ids) > self.max_tokens:
            raise TooLarge(
                f"the text has {len(ids)} tokens; the limit is {self.max_tokens}: "
                "shorten it, send it in parts, or set truncate to true"
            )
        sample = Sample(arrays={"input_ids": np.array(ids, np.int64)}, cost=float(len(ids)))
        return Decoded(samples=(sample,), info={"tokens": len(ids)})

    def interpret(
        self, decoded: Decoded, outputs: Sequence[Output], *, normalize: bool = True, dimensions: int | None = None
    ) -> dict[str, Any]:
        """`embedding` float32 [D]: its first `dimensions` (Matryoshka, arXiv:2205.13147), then of length 1 if `normalize`."""
        vector = outputs[0]["embedding"]
        _not_more(dimensions, len(vector))
        vector = vector[:dimensions]
        return {"embedding": unit(vector) if normalize else vector}


def _not_more(dimensions: int | None, most: int) -> None:
    if dimensions is not None and dimensions > most:
        raise Invalid(f"dimensions is {dimensions}; this model has {most}")


class TextClassifierCodec(TextCodec):
    """The codec of text classifiers: texts are read as for embeddings."""

    def __init__(self, card: Card, files: Files, meta: dict[str, Any]) -> None:
        super().__init__(card, files, meta)
        self._labels = read_labels(files, meta)

    def interpret(self, decoded: Decoded, outputs: Sequence[Output], *, top_k: int = 5) -> dict[str, Any]:  # type: ignore[override]
        """`scores` [C] → the `top_k` labels, best first."""
        return best(outputs[0]["scores"], self._labels, top_k)
