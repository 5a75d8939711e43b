"""Waveforms → greedy CTC frames, for transformers' Wav2Vec2ForCTC (arXiv:2006.11477). Exact whatever the batch.

The convolutions run on each clip at its own length, because the group norm of wav2vec2-base sees the whole clip and padding
would change it; only what follows, the transformer, runs padded, under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from app.card import Card
from app.tasks.base import Arrays, Files, Output


class SpeechProgram:
    """For Wav2Vec2ForCTC without adapters."""

    def __init__(self, card: Card, files: Files) -> None:
        pass

    def collate(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """`waveform` float32 [B, T] zero-padded, `samples` int64 [B]."""
        waves = [torch.from_numpy(np.array(sample["waveform"], np.float32)) for sample in samples]
        return {"waveform": pad_sequence(waves, batch_first=True), "samples": torch.tensor([len(wave) for wave in waves])}

    def forward(self, module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`token_ids` int64 [B, F], `token_scores` float32 [B, F] (probability of the chosen token), `frames` int64 [B]."""
        logits, frames = self.logits(module, batch)
        best = logits.float().softmax(-1).max(-1)
        return {"token_ids": best.indices, "token_scores": best.values, "frames": frames}

    def logits(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, F, V] and the frames [B] that are real. Also what the trainer differentiates."""
        model: Any = module
        lengths = batch["samples"].tolist()
        features = self._features(model, batch["waveform"], lengths)
        frames = torch.tensor([len(feature) for feature in features], device=batch["waveform"].device)
        padded = pad_sequence(features, batch_first=True)
        mask = torch.arange(padded.shape[1], device=frames.device) < frames[:, None]
        hidden, _ = model.wav2vec2.feature_projection(padded)
        hidden = model.wav2vec2._mask_hidden_states(hidden, attention_mask=mask)  # SpecAugment; nothing in evaluation mode
        whole = bool(mask.all())  # one clip, or all of one length: no mask, the faster kernels
        encoded = model.wav2vec2.encoder(hidden.clone(), attention_mask=None if whole else mask).last_hidden_state
        return model.lm_head(model.dropout(encoded)), frames

    def _features(self, model: Any, waveform: Tensor, lengths: list[int]) -> list[Tensor]:
        """[F, C] for each clip. Clips of one length share a call."""
        features: dict[int, Tensor] = {}
        for length in set(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            found = model.wav2vec2.feature_extractor(waveform[rows, :length]).transpose(1, 2)
            features.update(zip(rows, found, strict=True))
        return [features[row] for row in range(len(lengths))]

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """Each clip's own frames."""
        return [
            {name: outputs[name][row, : int(frames)] for name in ("token_ids", "token_scores")}
            for row, frames in enumerate(outputs["frames"])
        ]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`vocabulary` (size), `frame_s`, `parameters`."""
        config: Any = module.config
        return {
            "vocabulary": int(config.vocab_size),
            "frame_s": int(np.prod(config.conv_stride)) / 16000,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }
