"""Wav2Vec2ForCTC as two networks, and what the trainer differentiates.

In training, what follows the convolutions, the transformer, runs padded under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from app.tasks.base import Arrays


class SpeechFeatures(nn.Module):
    """The convolutions."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, T], all of it real → [B, F, C]."""
        model: Any = self.module
        found: Tensor = model.wav2vec2.feature_extractor(waveform.to(model.lm_head.weight.dtype)).transpose(1, 2)
        return found


class SpeechEncoder(nn.Module):
    """The transformer and the output layer, on clips of one length."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F, C] → the likeliest tokens int64 [B, F] and their probabilities float32 [B, F]."""
        best = _encode(self.module, features, None).float().softmax(-1).max(-1)
        return best.indices, best.values


def pad(samples: Sequence[Arrays]) -> dict[str, Tensor]:
    """`waveform` float32 [B, T] zero-padded, `samples` int64 [B]: for `logits`."""
    waves = [torch.from_numpy(np.array(sample["waveform"], np.float32)) for sample in samples]
    return {"waveform": pad_sequence(waves, batch_first=True), "samples": torch.tensor([len(wave) for wave in waves])}


def logits(module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """[B, F, V] and the frames [B] that are real, all clips padded in one pass: what the trainer differentiates."""
    extract = SpeechFeatures(module)
    lengths = batch["samples"].tolist()
    features: dict[int, Tensor] = {}
    for length in dict.fromkeys(lengths):
        rows = [row for row, other in enumerate(lengths) if other == length]
        features.update(zip(rows, extract(batch["waveform"][rows, :length]), strict=True))
    clips = [features[row] for row in range(len(features))]
    frames = torch.tensor([len(clip) for clip in clips], device=batch["waveform"].device)
    padded = pad_sequence(clips, batch_first=True)
    mask = torch.arange(padded.shape[1], device=frames.device) < frames[:, None]
    return _encode(module, padded, None if bool(mask.all()) else mask), frames


def _encode(module: Any, features: Tensor, mask: Tensor | None) -> Tensor:
    """[B, F, C] and which frames are real [B, F] (None: all) → logits [B, F, V]."""
    hidden, _ = module.wav2vec2.feature_projection(features)
    # SpecAugment; nothing in evaluation mode. A clip must be longer than one of its masks.
    if mask is not None or (module.training and hidden.shape[1] > module.config.mask_time_length):
        hidden = module.wav2vec2._mask_hidden_states(hidden, attention_mask=mask)
    encoded = module.wav2vec2.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
    logits: Tensor = module.lm_head(module.dropout(encoded))
    return logits
