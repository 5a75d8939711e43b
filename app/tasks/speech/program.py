"""Waveforms → greedy CTC frames, for transformers' Wav2Vec2ForCTC (arXiv:2006.11477). Exact whatever the batch.

Nothing runs padded in service: the group norm of wav2vec2-base sees the whole clip, padding would change it. In training, what
follows the convolutions, the transformer, runs padded under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from app.card import Card
from app.tasks.base import Arrays, Files, Networks, Output


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

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, C] → logits float32 [B, F, V]."""
        return _encode(self.module, features, None).float()


class SpeechProgram:
    """For Wav2Vec2ForCTC without adapters."""

    padded = True

    def __init__(self, card: Card, files: Files) -> None:
        pass

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`features`: [B, T] → [B, F, C]; `encoder`: [B, F, C] → [B, F, V]."""
        return {"features": SpeechFeatures(module), "encoder": SpeechEncoder(module)}

    def collate(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """One entry for each length: its clips, float32 [b, T]. Lengths are shapes, so that `forward` never asks the device."""
        return {
            str(length): torch.from_numpy(np.stack([samples[row]["waveform"] for row in rows]).astype(np.float32, copy=False))
            for length, rows in _by_length(samples).items()
        }

    def forward(self, networks: Networks, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`token_ids` int64 [B, F], `token_scores` float32 [B, F] (the chosen token's), `frames` int64 [B]: by length.

        Clips of one length share a call, others do not: one alone fills the cores of a CPU, where padding would only cost.
        """
        clips = [logits for waves in batch.values() for logits in networks["encoder"](networks["features"](waves))]
        best = pad_sequence(clips, batch_first=True).softmax(-1).max(-1)
        return {"token_ids": best.indices, "token_scores": best.values, "frames": torch.tensor([len(clip) for clip in clips])}

    def pad(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """`waveform` float32 [B, T] zero-padded, `samples` int64 [B]: for `logits`."""
        waves = [torch.from_numpy(np.array(sample["waveform"], np.float32)) for sample in samples]
        return {"waveform": pad_sequence(waves, batch_first=True), "samples": torch.tensor([len(wave) for wave in waves])}

    def logits(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
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

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """Each clip's own frames."""
        order = [row for rows in _by_length(samples).values() for row in rows]
        found = {
            row: {name: outputs[name][place, : int(outputs["frames"][place])] for name in ("token_ids", "token_scores")}
            for place, row in enumerate(order)
        }
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


def _encode(module: Any, features: Tensor, mask: Tensor | None) -> Tensor:
    """[B, F, C] and which frames are real [B, F] (None: all) → logits [B, F, V]."""
    hidden, _ = module.wav2vec2.feature_projection(features)
    if mask is not None or module.training:  # SpecAugment; nothing in evaluation mode
        hidden = module.wav2vec2._mask_hidden_states(hidden, attention_mask=mask)
    encoded = module.wav2vec2.encoder(hidden.clone(), attention_mask=mask).last_hidden_state
    logits: Tensor = module.lm_head(module.dropout(encoded))
    return logits
