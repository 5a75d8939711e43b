"""The network of every first PyTorch tutorial: 784 pixels, 128 hidden units, 10 digits. An example of bringing your own."""

from __future__ import annotations

from torch import Tensor, nn


class DigitNet(nn.Module):
    """`forward`: normalised pixels [B, 1, 28, 28] → logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.layers(x)
        return logits
