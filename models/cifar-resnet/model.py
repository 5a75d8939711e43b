"""A ResNet for 32×32 pictures: whitened patches, three stages that halve the side and end in a residual, one linear layer.

Residuals as in He et al. 2016 (arXiv:1512.03385); the whitening of patches and the widths follow K. Jordan 2024
(arXiv:2404.00498).
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
        self.body = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class CifarResNet(nn.Module):
    """`forward`: normalised pixels [B, 3, H, W] → logits [B, classes]; `features`: → [B, 256]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2)
        self.stages = nn.Sequential(
            nn.ReLU(inplace=True),
            _conv(24, 64, pool=2),
            _Residual(64),
            _conv(64, 256, pool=2),
            _Residual(256),
            _conv(256, 256, pool=2),
            _Residual(256),
        )
        self.head = nn.Linear(256, classes)

    @torch.no_grad()
    def prepare(self, pixels: Tensor) -> None:
        """Start the first convolution as whitening of 2×2 patches of normalised pixels [N, 3, H, W], and its negative."""
        patches = pixels.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T.reshape(12, 3, 2, 2)
        self.patches.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> Tensor:
        """The vector that the linear layer sees. In service, the mean over a picture and its mirror image."""
        seen: Tensor = torch.amax(self.stages(self.patches(x)), dim=(2, 3))
        if not self.training:
            seen = (seen + torch.amax(self.stages(self.patches(x.flip(3))), dim=(2, 3))) / 2
        return seen

    def forward(self, x: Tensor) -> Tensor:
        """Class logits."""
        logits: Tensor = self.head(self.features(x))
        return logits
