"""Recipe → optimizer, and its learning rate over the steps."""

from __future__ import annotations

import math

import torch

from app.tuning.recipe import Recipe


def optimizer(module: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over all weights that may learn, in two groups: biases and normalisation weights do not decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: a linear climb, then half a cosine (arXiv:1608.03983) or a straight line, to zero."""
    climb = max(1, round(steps * recipe.warmup))
    if step < climb:
        return (step + 1) / climb
    gone = (step - climb) / max(1, steps - climb)
    return 1 - gone if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
