"""A ResNet for 32×32 pictures: one convolution, three stages of conv–pool–residual, global max pooling, one linear layer.

Residual blocks as in He et al. 2016 (arXiv:1512.03385); the widths and the early pooling follow D. Page, "How to train your
ResNet" (2018), at half width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class CifarResNet(nn.Module):
    """`forward`: normalised pixels [B, 3, 32, 32] → logits [B, classes]; `features`: → [B, 8 · width]."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv(3, width)
        self.stages = nn.Sequential(
            nn.Sequential(_conv(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width)),
            nn.Sequential(_conv(2 * width, 4 * width), nn.MaxPool2d(2), _Residual(4 * width)),
            nn.Sequential(_conv(4 * width, 8 * width), nn.MaxPool2d(2), _Residual(8 * width)),
        )
        self.head = nn.Linear(8 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """The vector that the linear layer sees."""
        return torch.amax(self.stages(self.stem(x)), dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.head(self.features(x))
        return logits
