"""Token ids → one vector per text: transformers' encoders with mean or first-token pooling (Sentence-BERT, arXiv:1908.10084)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.card import Card
from app.tasks.base import Arrays, Files, Output
from app.tasks.text.input import TextInput


class TextProgram:
    """For BERT, RoBERTa and their kin."""

    def __init__(self, card: Card, files: Files) -> None:
        self._input = TextInput(**card.input)

    def collate(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """`input_ids` int64 [B, T], padded; `attention_mask` int64 [B, T], 1 where there is a token."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        ids = torch.zeros(len(samples), max(lengths), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            ids[row, :length] = torch.from_numpy(sample["input_ids"].copy())
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`embedding` float32 [B, D], not normalised."""
        mask = batch["attention_mask"]
        padding_id = getattr(module.config, "pad_token_id", None) or 0
        ids = batch["input_ids"].masked_fill(mask == 0, padding_id)  # RoBERTa counts positions by it
        hidden = module(input_ids=ids, attention_mask=mask).last_hidden_state
        if self._input.pooling == "cls":
            return {"embedding": hidden[:, 0].float()}
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return {"embedding": ((hidden * weights).sum(1) / weights.sum(1)).float()}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        return [{"embedding": outputs["embedding"][row]} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`dimensions`, `max_tokens`, `parameters`."""
        config: Any = module.config
        positions = int(config.max_position_embeddings)
        if config.model_type == "roberta":  # its positions start after the padding id
            positions -= int(config.pad_token_id) + 1
        return {
            "dimensions": int(config.hidden_size),
            "max_tokens": min(self._input.max_tokens, positions),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }
