"""An image model as one network: normalisation, the module, and what its classifier sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def classifier(module: nn.Module) -> nn.Linear:
    """The last linear layer, in the order of definition: the head of ResNet, VGG, Inception and our own."""
    layers = [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and "AuxLogits" not in name]
    if not layers:
        raise TypeError("an image model must end in nn.Linear; this one has no linear layer")
    return layers[-1]
