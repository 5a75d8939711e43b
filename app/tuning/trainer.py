"""Train a module on a dataset: a generator of progress. Prints nothing, reads nothing, knows no command line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from app.errors import Invalid, ModelFailed
from app.tasks.base import Dataset


class Recipe(BaseModel):
    """Everything that, with data and seed, decides the result. Read from `models/<name>/tune.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    momentum: float = 0.9
    """SGD only; Nesterov's form."""
    weight_decay: float = 5e-4
    """Not applied to biases and normalisation weights."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the steps in which the rate climbs; then it falls to zero along a cosine (arXiv:1608.03983)."""
    clip_norm: float | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the averaged weights that are scored and kept; 0 keeps the last ones."""
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two measurements; the last epoch is always measured."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a run. `metrics` are there when the held-out part was just measured."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    samples_per_s: float
    seconds_left: float
    metrics: dict[str, float] = field(default_factory=dict)


def train(module: torch.nn.Module, dataset: Dataset, recipe: Recipe) -> Iterator[Progress]:
    """Train `module` in place and yield after every step. The same recipe, data and machine give the same weights.

    Raises ModelFailed when the loss stops being a number, Invalid when the data does not fill one batch.
    """
    torch.manual_seed(recipe.seed)
    np.random.seed(recipe.seed)
    rng = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(module, recipe)
    per_epoch = dataset.steps(recipe.batch_size)
    steps = per_epoch * recipe.epochs
    if not steps:
        raise Invalid(f"the data does not fill one batch of {recipe.batch_size}; lower batch_size or give more data")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warmup))
    average = _Average(module, recipe.ema)
    started, step = time.monotonic(), 0

    for epoch in range(1, recipe.epochs + 1):
        module.train()
        for batch in dataset.batches(recipe.batch_size, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = dataset.loss(module, batch)
            step += 1
            value = loss.item()
            if not math.isfinite(value):
                raise ModelFailed(f"the loss became {value} at step {step}; lower learning_rate, or set clip_norm = 1.0")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            optimizer.step()
            average.update()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            last = step % per_epoch == 0
            metrics = _measure(average.module, dataset, epoch, recipe) if last else {}
            pace = (time.monotonic() - started) / step
            yield Progress(
                step=step,
                steps=steps,
                epoch=epoch,
                loss=value,
                learning_rate=rate,
                samples_per_s=recipe.batch_size / pace,
                seconds_left=pace * (steps - step),
                metrics=metrics,
            )
    average.keep()
    module.eval()


def _measure(module: torch.nn.Module, dataset: Dataset, epoch: int, recipe: Recipe) -> dict[str, float]:
    if epoch % recipe.evaluate_every and epoch != recipe.epochs:
        return {}
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        metrics = dataset.score(module)
    module.train(was_training)
    return metrics


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear climb, then half a cosine."""
    climb = max(1, round(steps * warmup))
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))


def _optimizer(module: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


class _Average:
    """Exponential moving average of a module's weights and buffers (Polyak averaging); with decay 0, the module itself."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._copy = deepcopy(module) if decay else module
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Early on the average is short, so that random weights are soon forgotten."""
        if not self._decay:
            return
        self._updates += 1
        share = 1 - min(self._decay, self._updates / (self._updates + 10))
        for kept, new in zip(self._copy.state_dict().values(), self._module.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, share)
            else:
                kept.copy_(new)

    @property
    def module(self) -> torch.nn.Module:
        """What to measure."""
        return self._copy

    def keep(self) -> None:
        """Give the module the averaged weights."""
        if self._decay:
            self._module.load_state_dict(self._copy.state_dict())
