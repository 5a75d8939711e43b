"""Pixels → class scores and an embedding (what the last linear layer sees), for any module. No torch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.card import Card
from app.tasks.base import Arrays, Batch, Files, Networks, Output, Vectors
from app.tasks.image.input import ImageInput

if TYPE_CHECKING:
    from torch import nn


class ImageProgram:
    """Normalises on the device; the wire and the bus carry uint8."""

    padded = False

    def __init__(self, card: Card, files: Files) -> None:
        self._input = ImageInput(**card.input)
        self._vectors = Vectors()

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`image`: pixels → scores and embedding, in one pass."""
        from app.tasks.image.network import ImageNetwork

        return {"image": ImageNetwork(module, self._input)}

    def collate(self, samples: Sequence[Arrays]) -> Arrays:
        """`pixels` uint8 [B, H, W, C]: all of one size, by the codec."""
        return {"pixels": np.stack([sample["pixels"] for sample in samples])}

    def forward(self, networks: Networks, batch: Batch) -> Batch:
        """`scores` float32 [B, C] (softmax) and `embedding` float32 [B, D] (what the last linear layer sees)."""
        scores, embedding = networks["image"](batch["pixels"])
        return {"scores": scores, "embedding": embedding}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        found = {name: self._vectors.of(name, array, len(samples)) for name, array in outputs.items()}
        return [{name: array[row] for name, array in found.items()} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`labels` (if the weights came with them), `classes`, `dimensions`, `parameters`."""
        from app.tasks.image.network import classifier, outputs

        last = classifier(module)
        classes = outputs(module, self._input) if last is None else last.out_features
        return {
            "labels": getattr(module, "labels", None) or [],
            "classes": classes,
            "dimensions": classes if last is None else last.in_features,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }
