"""An image model as one network: normalisation, the module, and what its classifier sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.tasks.base import device_of
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
        """uint8 [B, H, W, C] → class probabilities float32 [B, classes] and the classifier's input float32 [B, D]: of a network
        without a linear layer, what it says.
        """
        seen: list[Tensor] = []
        last = self._classifier[0]
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if last is not None else None
        try:
            scaled = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean.float()) / self.std.float()
            logits = self.module(scaled.to(_dtype(self.module) if last is None else last.weight.dtype))
        finally:
            if hook is not None:
                hook.remove()
        return logits.float().softmax(1), (seen[-1] if seen else logits).flatten(1).float()


def classifier(module: nn.Module) -> nn.Linear | None:
    """The last linear layer, in the order of definition: the head of ResNet, VGG, Inception and our own. None: it has none."""
    layers = [layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and "AuxLogits" not in name]
    return layers[-1] if layers else None


@torch.no_grad()
def outputs(module: nn.Module, wanted: ImageInput) -> int:
    """How many scores it gives to a picture, by trying one; 0 if what it gives is no vector. Raises what the module does."""
    picture = torch.zeros(1, channels_of(wanted), wanted.crop, wanted.crop, device=device_of(module), dtype=_dtype(module))
    training = module.training
    try:
        said = module.eval()(picture)
    finally:
        module.train(training)
    return int(said.shape[1]) if isinstance(said, Tensor) and said.ndim == 2 else 0


def channels_of(wanted: ImageInput) -> int:
    """Of what the module gets."""
    return max(len(wanted.mean), 1 if wanted.color == "gray" else 3)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in module.parameters()), torch.float32)
