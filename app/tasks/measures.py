"""What is measured of classifiers beside their accuracy, for the trainers of every task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def beside(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """`loss`, the cross-entropy without smoothing, and `macro_f1`. Logits [N, C] and int64 [N], anywhere."""
    logits, targets = logits.float().cpu(), targets.cpu().long()
    return {"loss": float(functional.cross_entropy(logits, targets)), "macro_f1": macro_f1(logits.argmax(1), targets)}


def macro_f1(said: Tensor, targets: Tensor) -> float:
    """The mean over the classes, of those that are there or were said, of the harmonic mean of precision and recall."""
    most = 1 + int(torch.cat([said, targets]).max())
    right = torch.bincount(targets[said == targets], minlength=most).double()
    both = torch.bincount(said, minlength=most) + torch.bincount(targets, minlength=most)
    return float((2 * right[both > 0] / both[both > 0]).mean())
