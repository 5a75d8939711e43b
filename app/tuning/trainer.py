"""Train a module on a dataset: one loop that tells its progress. Prints nothing, reads nothing, knows no command line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import Invalid, ModelFailed
from app.tasks.base import Batch, Dataset


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
    """Decay per step of the averaged weights that are scored and kept; 0: no averaging."""
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two measurements; the last epoch is always measured."""
    keep_statistics: bool = False
    """Batch norms go on normalising by what they saw before: small batches of few data tell less (and some published weights
    have theirs folded away)."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """Stop after so many measurements without a gain; None: run to the end."""
    keep: Literal["best", "last"] = "best"
    """Which measured weights the run ends with. What chose the best ones flatters them a little: `last` is for data whose
    figures are to be published."""
    seed: int = 0

    @model_validator(mode="after")
    def _choosing(self) -> Self:
        if self.keep == "last" and self.patience is not None:
            raise ValueError('patience waits for better weights and keep = "last" wants none chosen; leave one out')
        return self


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


class Training:
    """One run. Iterate it and it trains `module` in place, a `Progress` after every step. The same recipe, data and machine give
    the same weights; so does a run that was saved after any step, and restored into a new `Training` of the same.
    """

    def __init__(
        self, module: torch.nn.Module, dataset: Dataset, recipe: Recipe, reached: Mapping[str, float] | None = None
    ) -> None:
        """`reached`: what `module` measures now, for others to beat. Raises Invalid when the data does not fill one batch."""
        self.module = module
        self.metrics: dict[str, float] = dict(reached or {})
        """Of the weights that the run will end with, as far as it has come."""
        self._dataset = dataset
        self._recipe = recipe
        self._per_epoch = dataset.steps(recipe.batch_size)
        self._steps = self._per_epoch * recipe.epochs
        if not self._steps:
            raise Invalid(f"the data does not fill one batch of {recipe.batch_size}; lower batch_size or give more data")
        self._seed()
        self._optimizer = _optimizer(module, recipe)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: _rate(step, self._steps, recipe.warmup))
        self._average = _Average(module, recipe.ema)
        self._best: dict[str, torch.Tensor] | None = _copied(module) if reached else None
        self._patience = 0  # measurements since the best one
        self._step = 0
        self._epoch_began = self._rng.get_state()

    def _seed(self) -> None:
        torch.manual_seed(self._recipe.seed)
        np.random.seed(self._recipe.seed)
        self._rng = torch.Generator().manual_seed(self._recipe.seed)

    def __iter__(self) -> Iterator[Progress]:
        """Raises ModelFailed when the loss stops being a number."""
        recipe, first = self._recipe, self._step
        started = time.monotonic()
        while self._step < self._steps and not self._enough():
            self._enter()
            for batch in self._rest_of_epoch():
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                    loss = self._dataset.loss(self.module, batch)
                value = loss.item()
                if not math.isfinite(value):
                    raise ModelFailed(
                        f"the loss became {value} at step {self._step + 1}; lower learning_rate, or set clip_norm = 1.0"
                    )
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip_norm)
                self._optimizer.step()
                self._average.update()
                rate = float(self._schedule.get_last_lr()[0])
                self._schedule.step()
                self._step += 1
                metrics = self._measure() if self._step % self._per_epoch == 0 else {}
                pace = (time.monotonic() - started) / (self._step - first)
                yield Progress(
                    step=self._step,
                    steps=self._steps,
                    epoch=-(-self._step // self._per_epoch),
                    loss=value,
                    learning_rate=rate,
                    samples_per_s=recipe.batch_size / pace,
                    seconds_left=pace * (self._steps - self._step),
                    metrics=metrics,
                )
        self._average.keep()
        if self._best is not None:
            self.module.load_state_dict(self._best)
        self.module.eval()

    def _enter(self) -> None:
        self.module.train()
        if self._recipe.keep_statistics:
            for part in self.module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        """The batches that are left of this epoch. Those before are made again and let go: so all randomness is as it was."""
        epoch, done = divmod(self._step, self._per_epoch)
        if done:
            self._rng.set_state(self._epoch_began)
        else:
            self._epoch_began = self._rng.get_state()
        return islice(self._dataset.batches(self._recipe.batch_size, self._rng, epoch), done, None)

    def _measure(self) -> dict[str, float]:
        """At the end of an epoch: the metrics of the weights that would be kept, and those weights if they are the best."""
        epoch = self._step // self._per_epoch
        if epoch % self._recipe.evaluate_every and epoch != self._recipe.epochs:
            return {}
        was_training = self._average.module.training
        self._average.module.eval()
        with torch.inference_mode():
            metrics = self._dataset.score(self._average.module)
        self._average.module.train(was_training)
        if self._recipe.keep == "last" or not self.metrics or better(metrics, self.metrics):
            self.metrics, self._patience = metrics, 0
            self._best = _copied(self._average.module)
        else:
            self._patience += 1
        return metrics

    def _enough(self) -> bool:
        return self._recipe.patience is not None and self._patience > self._recipe.patience

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    def state(self) -> dict[str, Any]:
        """All that it takes to go on from here: tensors and plain values, which `torch.load(weights_only=True)` reads."""
        name, keys, position, gauss, cached = np.random.get_state(legacy=True)
        return {
            "step": self._step,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch, "last_lr": self._schedule.get_last_lr()},
            "average": self._average.state(),
            "best": self._best,
            "metrics": self.metrics,
            "patience": self._patience,
            "epoch_began": self._epoch_began,
            "rng": self._rng.get_state(),
            "torch": torch.get_rng_state(),
            "numpy": [name, [int(key) for key in keys], int(position), int(gauss), float(cached)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._step = state["step"]
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        self._schedule._last_lr = state["schedule"]["last_lr"]
        self._average.restore(state["average"])
        self._best, self.metrics, self._patience = state["best"], state["metrics"], state["patience"]
        self._epoch_began = state["epoch_began"]
        self._rng.set_state(state["rng"])
        torch.set_rng_state(state["torch"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))


def _copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def better(metrics: Mapping[str, float], than: Mapping[str, float]) -> bool:
    """By the first one, the headline: an error shall fall, all others rise."""
    name = next(iter(metrics))
    return metrics[name] < than[name] if name.endswith("error_rate") else metrics[name] > than[name]


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
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
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

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"updates": self._updates, "copy": self._copy.state_dict() if self._decay else {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on averaging."""
        self._updates = state["updates"]
        if self._decay:
            self._copy.load_state_dict(state["copy"])

    def keep(self) -> None:
        """Give the module the averaged weights."""
        if self._decay:
            self._module.load_state_dict(self._copy.state_dict())
