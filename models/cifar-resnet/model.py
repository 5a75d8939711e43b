"""A ResNet for 32×32 pictures: a convolution, three stages that halve the side, residuals in the outer two, one linear layer.

Residual blocks as in He et al. 2016 (arXiv:1512.03385); the layout follows D. Page, "How to train your ResNet" (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, pool: int = 1) -> nn.Sequential:
    """Pooling stands before the normalisation, which then has a quarter of the work."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.MaxPool2d(pool) if pool > 1 else nn.Identity(),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class CifarResNet(nn.Module):
    """`forward`: normalised pixels [B, 3, H, W] → logits [B, classes]; `features`: → [B, 192]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _conv(3, 32),
            _conv(32, 64, pool=2),
            _Residual(64),
            _conv(64, 128, pool=2),
            _conv(128, 192, pool=2),
            _Residual(192),
        )
        self.head = nn.Linear(192, classes)

    def features(self, x: Tensor) -> Tensor:
        """The vector that the linear layer sees. In service, the mean over a picture and its mirror image."""
        seen: Tensor = torch.amax(self.stages(x), dim=(2, 3))
        if not self.training:
            seen = (seen + torch.amax(self.stages(x.flip(3)), dim=(2, 3))) / 2
        return seen

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.head(self.features(x))
        return logits
