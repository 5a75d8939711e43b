"""Token ids → one vector per text: transformers' encoders with mean or first-token pooling (Sentence-BERT, arXiv:1908.10084).

No padding where an architecture allows it: texts are packed side by side into rows, each token attends to its own text alone
and counts positions from its text's start (arXiv:2107.02027). A batch then costs the tokens that it holds. Architectures that
count positions otherwise (relative bias, rotation, windows along the row) get one text per row, padded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.card import Card
from app.tasks.base import Arrays, Files, Networks, Output
from app.tasks.text.input import TextInput

# Rows of several texts are no longer than this: attention's masked part grows with the row, and one long row has no batch to
# share among threads. MiniLM, tokens/s at rows of 20 · 80 · 160 · 256 · 640: 2354 · 2547 · 2352 · 2134 · 1633 (OpenVINO, bf16).
_ROW = 160
_ROW_PENALTY = 1 / 1500  # what a token of row length adds to each token's cost, from the same figures

# Positions start after the padding id (transformers, create_position_ids_from_input_ids).
_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})
# Positions are absolute and `position_ids` alone says them, and a 4-D mask is taken as it is: these may be packed.
_PACKABLE = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})


class TextEncoder(nn.Module):
    """A transformers encoder over packed rows."""

    paddings = (0, 0, -1)  # ids, positions, and a text that nobody else belongs to

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.first_position = _first_position(module.config)

    def forward(self, input_ids: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        """[R, L] each, `texts` the number of the text that a token belongs to → hidden states [R, L, D]."""
        together = (texts[:, :, None] == texts[:, None, :])[:, None]
        places = positions + self.first_position
        hidden: Tensor = self.module(input_ids=input_ids, position_ids=places, attention_mask=together).last_hidden_state
        return hidden


class PlainTextEncoder(nn.Module):
    """Any transformers encoder over rows of one text each, which begin with it. Takes the same three tensors."""

    paddings = TextEncoder.paddings

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        config: Any = module.config
        self.padding_id = int(getattr(config, "pad_token_id", None) or 0)
        self._windowed = getattr(config, "sliding_window", None) is not None

    def forward(self, input_ids: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        """[R, L] each; the module counts positions itself, in some architectures by the padding id → hidden states [R, L, D]."""
        # OpenVINO makes NaN of padding whose window holds no token, and the next layers spread it.
        if self._windowed and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise NotImplementedError("attention in windows is not traced")
        mask = (texts == texts[:, :1]).long()
        ids = input_ids.masked_fill(mask == 0, self.padding_id)
        hidden: Tensor = self.module(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


class TextProgram:
    """For every encoder of transformers: BERT, RoBERTa and their kin are packed, others padded."""

    def __init__(self, card: Card, files: Files) -> None:
        self._input = TextInput(**card.input)
        self.padded = "config.json" in files and (
            json.loads(files["config.json"].read_text(encoding="utf-8")).get("model_type") not in _PACKABLE
        )

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`encoder`: ids, positions and text numbers, int64 [R, L] → [R, L, D]."""
        return {"encoder": PlainTextEncoder(module) if self.padded else TextEncoder(module)}

    def collate(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """`input_ids`, `positions`, `texts` int64 [R, L]: text number B where nothing stands; `lengths`, `starts` int64 [B]."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        rows, width = ([[index] for index in range(len(lengths))], max(lengths)) if self.padded else pack(lengths)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        positions = torch.zeros_like(ids)
        texts = torch.full_like(ids, len(samples))
        starts = [0] * len(samples)
        for row, members in enumerate(rows):
            start = 0
            for member in members:
                end = start + lengths[member]
                ids[row, start:end] = torch.from_numpy(samples[member]["input_ids"].copy())
                positions[row, start:end] = torch.arange(lengths[member])
                texts[row, start:end] = member
                starts[member] = row * width + start
                start = end
        found = {"input_ids": ids, "positions": positions, "texts": texts}
        return found | {"lengths": torch.tensor(lengths), "starts": torch.tensor(starts)}

    def forward(self, networks: Networks, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`embedding` float32 [B, D], not normalised."""
        hidden = networks["encoder"](batch["input_ids"], batch["positions"], batch["texts"]).flatten(0, 1).float()
        if self._input.pooling == "cls":
            return {"embedding": hidden.index_select(0, batch["starts"])}
        lengths = batch["lengths"]
        sums = hidden.new_zeros(len(lengths) + 1, hidden.shape[1])  # the last row takes what stands nowhere
        return {"embedding": sums.index_add(0, batch["texts"].flatten(), hidden)[:-1] / lengths[:, None]}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        return [{"embedding": outputs["embedding"][row]} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`dimensions`, `max_tokens`, `parameters`."""
        config: Any = module.config
        positions = int(config.max_position_embeddings) - _first_position(config)
        return {
            "dimensions": int(config.hidden_size),
            "max_tokens": min(self._input.max_tokens, positions),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


def _first_position(config: Any) -> int:
    return int(config.pad_token_id) + 1 if config.model_type in _AFTER_PADDING else 0


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
