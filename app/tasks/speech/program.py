"""Waveforms → greedy CTC frames, for transformers' Wav2Vec2ForCTC (arXiv:2006.11477). Exact whatever the batch.

Nothing runs padded in service: the group norm of wav2vec2-base sees the whole clip, padding would change it.
No torch at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.card import Card
from app.tasks.base import Arrays, Batch, Files, Networks, Output, one_each

if TYPE_CHECKING:
    from torch import nn


class SpeechProgram:
    """For Wav2Vec2ForCTC without adapters."""

    padded = True

    def __init__(self, card: Card, files: Files) -> None:
        pass

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`features`: [B, T] → [B, F, C]; `encoder`: [B, F, C] → the likeliest tokens and their probabilities, [B, F] each."""
        from app.tasks.speech.network import SpeechEncoder, SpeechFeatures

        return {"features": SpeechFeatures(module), "encoder": SpeechEncoder(module)}

    def collate(self, samples: Sequence[Arrays]) -> Arrays:
        """One entry for each length: its clips, float32 [b, T]. Lengths are shapes, so that `forward` never asks the device."""
        return {
            str(length): np.stack([samples[row]["waveform"] for row in rows]).astype(np.float32, copy=False)
            for length, rows in _by_length(samples).items()
        }

    def forward(self, networks: Networks, batch: Batch) -> Batch:
        """For each length `token_ids.{T}` int64 [b, F] and `token_scores.{T}` float32 [b, F] (the chosen token's).

        Clips of one length share a call, others do not: one alone fills the cores of a CPU, where padding would only cost.
        """
        found: Batch = {}
        for length, waves in batch.items():
            ids, scores = networks["encoder"](networks["features"](waves))
            found |= {f"token_ids.{length}": ids, f"token_scores.{length}": scores}
        return found

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """Each clip's own `token_ids` and `token_scores`, [F]."""
        found: dict[int, Output] = {}
        for length, clips in _by_length(samples).items():
            said = {name: one_each(name, outputs[f"{name}.{length}"], len(clips)) for name in ("token_ids", "token_scores")}
            found |= {row: {name: array[place] for name, array in said.items()} for place, row in enumerate(clips)}
        return [found[row] for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`vocabulary` (size), `frame_s`, `parameters`."""
        config: Any = module.config
        return {
            "vocabulary": int(config.vocab_size),
            "frame_s": int(np.prod(config.conv_stride)) / 16000,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


def _by_length(samples: Sequence[Arrays]) -> dict[int, list[int]]:
    """Rows by the length of their clip."""
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(len(sample["waveform"]), []).append(row)
    return rows
