"""Pixels → class scores and an embedding, for any module whose last linear layer is its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.card import Card
from app.tasks.base import Arrays, Files, Networks, Output
from app.tasks.image.input import ImageInput


class ImageNetwork(nn.Module):
    """Normalisation, the module, and what its classifier sees."""

    def __init__(self, module: nn.Module, wanted: ImageInput) -> None:
        super().__init__()
        self.module = module
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(wanted.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(wanted.std).view(1, -1, 1, 1), persistent=False)
        self._classifier = [classifier(module)]  # in a list, so that it is no second owner of the weights

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, C] → class probabilities float32 [B, classes] and the classifier's input float32 [B, D]."""
        seen: list[Tensor] = []
        hook = self._classifier[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            scaled = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean.float()) / self.std.float()
            logits = self.module(scaled.to(self._classifier[0].weight.dtype))
        finally:
            hook.remove()
        return logits.float().softmax(1), seen[-1].flatten(1).float()


class ImageProgram:
    """Normalises on the device; the wire and the bus carry uint8."""

    padded = False

    def __init__(self, card: Card, files: Files) -> None:
        self._input = ImageInput(**card.input)

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        """`image`: pixels → scores and embedding, in one pass."""
        return {"image": ImageNetwork(module, self._input)}

    def collate(self, samples: Sequence[Arrays]) -> dict[str, Tensor]:
        """`pixels` uint8 [B, H, W, C]: all of one size, by the codec."""
        return {"pixels": torch.from_numpy(np.stack([sample["pixels"] for sample in samples]))}

    def forward(self, networks: Networks, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`scores` float32 [B, C] (softmax) and `embedding` float32 [B, D] (what the last linear layer sees)."""
        scores, embedding = networks["image"](batch["pixels"])
        return {"scores": scores, "embedding": embedding}

    def split(self, outputs: Arrays, samples: Sequence[Arrays]) -> list[Output]:
        """One row each."""
        return [{name: array[row] for name, array in outputs.items()} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """`labels` (if the weights came with them), `classes`, `dimensions`, `parameters`."""
        last = classifier(module)
        return {
            "labels": getattr(module, "labels", None) or [],
            "classes": last.out_features,
            "dimensions": last.in_features,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


def classifier(module: nn.Module) -> nn.Linear:
    """The last linear layer, in the order of definition: the head of ResNet, VGG, Inception and our own."""
    layers = [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and "AuxLogits" not in name]
    if not layers:
        raise TypeError("an image model must end in nn.Linear; this one has no linear layer")
    return layers[-1]
