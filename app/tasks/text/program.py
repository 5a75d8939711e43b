"""Token ids → one vector per text: transformers' encoders with mean or first-token pooling (Sentence-BERT, arXiv:1908.10084).

No padding where an architecture allows it: texts are packed side by side into rows, each token attends to its own text alone
and counts positions from its text's start (arXiv:2107.02027). A batch then costs the tokens that it holds. Architectures that
count positions otherwise (relative bias, rotation, windows along the row) get one text per row, padded. No torch at run time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.card import Card
from app.tasks.base import Arrays, Batch, Files, Networks, Output, Vectors
from app.tasks.text.input import TextInput, most_tokens

if TYPE_CHECKING:
    from torch import nn

# Rows of several texts are no longer than this: attention's masked part grows with the row, and one long row has no batch to
# share among threads. MiniLM, tokens/s at rows of 20 · 80 · 160 · 256 · 640: 2354 · 2547 · 2352 · 2134 · 1633 (OpenVINO, bf16).
_ROW = 160
_ROW_PENALTY = 1 / 1500  # what a token of row length adds to each token's cost, from the same figures

# Positions are absolute and `position_ids` alone says them, and a 4-D mask is taken as it is: these may be packed.
_PACKABLE = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})


class TextProgram:
    """For every encoder of transformers: BERT, RoBERTa and their kin are packed, others padded."""

    def __init__(self, card: Card, files: Files) -> None:
        self._input = TextInput(**card.input)
        self._vectors = Vectors()
        self.padded = "config.json" in files and (
            json.loads(files["config.json"].read_text(encoding="utf-8")).get("model_type") not in _PACKABLE
        )

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`encoder`: ids, positions and text numbers, int64 [R, L] → [R, L, D]."""
        from app.tasks.text.network import PlainTextEncoder, TextEncoder

        return {"encoder": PlainTextEncoder(module) if self.padded else TextEncoder(module)}

    def collate(self, samples: Sequence[Arrays]) -> Arrays:
        """`input_ids`, `positions`, `texts` int64 [R, L]: text number B where nothing stands; `pooling` float32 [B, R * L]: what
        each token counts for in its text's vector.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        rows, width = ([[index] for index in range(len(lengths))], max(lengths)) if self.padded else pack(lengths)
        ids, positions = np.zeros((2, len(rows), width), np.int64)
        texts = np.full_like(ids, len(samples))
        pooling = np.zeros((len(samples), len(rows) * width), np.float32)
        for row, members in enumerate(rows):
            start = 0
            for member in members:
                length = lengths[member]
                ids[row, start : start + length] = samples[member]["input_ids"]
                positions[row, start : start + length] = np.arange(length)
                texts[row, start : start + length] = member
                counted = length if self._input.pooling == "mean" else 1
                first = row * width + start
                pooling[member, first : first + counted] = 1 / counted
                start += length
        return {"input_ids": ids, "positions": positions, "texts": texts, "pooling": pooling}

    def forward(self, networks: Networks, batch: Batch) -> Batch:
        """`embedding` float32 [B, D], not normalised."""
        hidden = networks["encoder"](batch["input_ids"], batch["positions"], batch["texts"])
        return {"embedding": batch["pooling"] @ hidden.reshape(-1, hidden.shape[-1])}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        return [{"embedding": vector} for vector in self._vectors.of("embedding", outputs["embedding"], len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`dimensions`, `max_tokens`, `parameters`."""
        config: Any = module.config
        return {
            "dimensions": int(config.hidden_size),
            "max_tokens": most_tokens(self._input, config.to_dict()),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


class TextClassifierProgram(TextProgram):
    """The same encoders, and on a text's vector the linear layer of `TextClassifier`."""

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`encoder` as above; `classifier`: vectors float32 [B, D] → probabilities float32 [B, C]."""
        from app.tasks.text.network import Classifier

        whole: Any = module
        return super().networks(whole.encoder) | {"classifier": Classifier(whole.classifier)}

    def forward(self, networks: Networks, batch: Batch) -> Batch:
        """`scores` float32 [B, C]."""
        return {"scores": networks["classifier"](super().forward(networks, batch)["embedding"])}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        return [{"scores": scores} for scores in self._vectors.of("scores", outputs["scores"], len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`classes`, `dimensions`, `max_tokens`, `parameters`."""
        whole: Any = module
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return super().describe(whole.encoder) | {"classes": whole.classifier.out_features, "parameters": parameters}


def pack(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Which texts stand side by side: rows of indices, and the row length that makes the batch cheapest.

    First fit, longest first (Johnson 1974: at most 22 % more rows than the best), tried at a few row lengths.
    """
    longest, total = max(lengths), sum(lengths)
    if longest == min(lengths):
        return [[index] for index in range(len(lengths))], longest
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    widths = {min(max(longest, width), max(longest, total)) for width in (longest, _ROW // 2, 3 * _ROW // 4, _ROW)}
    packings = [(_first_fit(lengths, order, width), width) for width in sorted(widths)]
    return min(packings, key=lambda packing: len(packing[0]) * packing[1] * (1 + packing[1] * _ROW_PENALTY))


def _first_fit(lengths: Sequence[int], order: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for index in order:
        need = lengths[index]
        row = next((row for row, room in enumerate(free) if room >= need), None)
        if row is None:
            rows.append([index])
            free.append(width - need)
        else:
            rows[row].append(index)
            free[row] -= need
    return rows
