"""Train a module on a dataset: one loop that tells its progress. Prints nothing, reads nothing, knows no command line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object, send_to_device

from app.errors import Invalid, ModelFailed
from app.tasks.base import Batch, Dataset
from app.tuning import chance, optimize
from app.tuning.average import Average
from app.tuning.device import accelerator
from app.tuning.pace import Costs, Pace
from app.tuning.progress import Measured, Progress, Waited, better, surer
from app.tuning.recipe import Recipe

__all__ = ["Progress", "Recipe", "Training", "better"]


class Training:
    """One run. Iterate it and it trains `module` in place, on the device that accelerate gives, a `Progress` after every step.
    The same recipe, data and machine give the same weights; so does a run that was saved after any step (a step is the
    optimizer's: it takes in `accumulate` batches), and restored into a new `Training` of the same.

    Of several processes each makes all batches and takes its own share of them; the first one measures, and all end with its
    weights. All must iterate, and all must ask for `state`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        reached: Mapping[str, float] | None = None,
        work: Callable[[int], float] = lambda epoch: 1.0,
    ) -> None:
        """`reached`: what `module` measures now, to be beaten. `work`: what a batch of an epoch costs, beside those of others.

        Raises Invalid when the data does not fill one batch.
        """
        self.module = module
        self.metrics: dict[str, float] = dict(reached or {})
        """Of the weights that the run will end with, as far as it has come."""
        self.best: Measured | None = {"epoch": 0, "step": 0, "metrics": self.metrics} if reached else None
        self._dataset = dataset
        self.recipe = recipe
        self._accelerator = accelerator()
        processes = self._accelerator.num_processes
        if recipe.batch_size % processes:
            raise Invalid(f"batch_size {recipe.batch_size} cannot be shared by {processes} processes; make it a multiple of that")
        self._batches = dataset.steps(recipe.batch_size // processes) // processes  # of an epoch, for each process
        self._per_epoch = -(-self._batches // recipe.accumulate)
        self._steps = self._per_epoch * recipe.epochs
        if not self._steps:
            raise Invalid(f"the data does not fill one batch of {recipe.batch_size}; lower batch_size or give more data")
        self._seed()
        self._optimizer = optimize.optimizer(module, recipe)
        schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: optimize.rate(step, self._steps, recipe))
        # The optimizer comes back in a wrapping whose every step looks for a package on the disk (lomo): 0.36 ms, a third of a
        # small network's step. Without loss scaling, which bf16 does not need, it does no more than what it wraps.
        self._loss, _, self._schedule = self._accelerator.prepare(_Loss(module, dataset), self._optimizer, schedule)
        self._average = Average(module, recipe.ema)
        self._kept: dict[str, torch.Tensor] | None = _copied(module) if reached else None
        self._costs = Costs(work, recipe.epochs, self._batches)
        self._waited = Waited()
        self._step = 0
        self._epoch_began = self._rng.get_state()

    def _seed(self) -> None:
        """The data's randomness is the same in all processes, the network's own (dropout) is not."""
        own = (self.recipe.seed + self._accelerator.process_index) % 2**32
        torch.manual_seed(own)
        np.random.seed(own)
        self._rng = torch.Generator().manual_seed(self.recipe.seed)

    def __iter__(self) -> Iterator[Progress]:
        """Raises ModelFailed when the loss stops being a number, Invalid when `metric` is none of the data set's."""
        self._check_metric()
        recipe, device = self.recipe, self._accelerator.device
        pace: Pace | None = None
        while self._step < self._steps and not self._enough():
            self._enter()
            rest = self._rest_of_epoch()
            pace = pace or Pace(time.monotonic())
            for batches in rest:
                self._optimizer.zero_grad()
                value = 0.0
                for batch, share, last in self._own(batches):
                    with nullcontext() if last else self._accelerator.no_sync(self._loss):
                        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                            loss = self._loss(send_to_device(batch, device))
                        loss = loss if share == 1 else loss * share
                        self._accelerator.backward(loss)
                    value += loss.item()
                value = self._over_all(value)
                if not math.isfinite(value):
                    raise self._lost("the loss", value, self._step + 1)
                if recipe.clip_norm is not None:
                    self._accelerator.clip_grad_norm_(self.module.parameters(), recipe.clip_norm)
                self._optimizer.step()
                self._average.update()
                rate = float(self._schedule.get_last_lr()[0])
                self._schedule.step()
                self._step += 1
                pace.trained(sum(map(_samples, batches)), self._costs.of((self._step - 1) // self._per_epoch, len(batches)))
                metrics = self._measure(pace) if self._step % self._per_epoch == 0 else {}
                yield self._progress(value, rate, metrics, pace)
        self._end()

    def _enter(self) -> None:
        self.module.train()
        for part in self.module.modules() if self.recipe.keep_statistics else ():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.eval()

    def _rest_of_epoch(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left of this epoch, for all processes. Those before are made again and let go: so all
        randomness is as it was.
        """
        epoch, done = divmod(self._step, self._per_epoch)
        if done:
            self._rng.set_state(self._epoch_began)
        else:
            self._epoch_began = self._rng.get_state()
        processes = self._accelerator.num_processes
        batches = iter(self._dataset.batches(self.recipe.batch_size // processes, self._rng, epoch))
        batches = islice(batches, self._batches * processes)
        for _ in islice(batches, done * self.recipe.accumulate * processes):
            pass
        return iter(lambda: list(islice(batches, self.recipe.accumulate * processes)), [])

    def _own(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, float, bool]]:
        """This process's batches of a step, the share that each has in the step's loss, by its samples, and whether it is the
        last: then gradients meet. Processes take the mean of what they have, hence their number.
        """
        processes, total = self._accelerator.num_processes, sum(map(_samples, batches))
        own = batches[self._accelerator.process_index :: processes]
        for number, batch in enumerate(own, 1):
            yield batch, processes * _samples(batch) / total, number == len(own)

    def _over_all(self, value: float) -> float:
        """The mean over all processes: so all stop where one's loss is no number."""
        if self._accelerator.num_processes == 1:
            return value
        return float(self._accelerator.reduce(torch.tensor(value, device=self._accelerator.device), "mean"))

    def _measure(self, pace: Pace) -> dict[str, float]:
        """At the end of an epoch: the metrics of the weights that would be kept, and those weights if they are the best."""
        epoch = self._step // self._per_epoch
        if epoch % self.recipe.evaluate_every and epoch != self.recipe.epochs:
            return {}
        began = time.monotonic()
        metrics = self._score()
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._lost(f"{name} of the held-out part", value, self._step)
        name, reached = self.recipe.metric, self.best["metrics"] if self.best else {}
        risen = better(metrics, reached, name)
        gained = risen or surer(metrics, reached, name)
        self._waited.measured(metrics, name, gained=risen or self._step < self.recipe.warmup * self._steps)
        if gained:
            self.best = {"epoch": epoch, "step": self._step, "metrics": metrics}
        if gained or self.recipe.keep == "last":
            self.metrics = metrics
            self._kept = _copied(self._average.module) if self.leads else None
        pace.measured(time.monotonic() - began)
        return metrics

    def _lost(self, what: str, value: float, step: int) -> ModelFailed:
        clip = "" if self.recipe.clip_norm else ", or set clip_norm = 1.0"
        return ModelFailed(f"{what} became {value} at step {step}; lower learning_rate{clip}")

    def _score(self) -> dict[str, float]:
        """As the first process measures it, told to all."""
        told: list[dict[str, float]] = [{}]
        if self.leads:
            module = self._average.module
            was_training = module.training
            module.eval()
            with torch.inference_mode():
                told = [self._dataset.score(module)]
            module.train(was_training)
        return dict(broadcast_object_list(told)[0])

    def _check_metric(self) -> None:
        """Before hours of training, not after the first epoch."""
        name = self.recipe.metric
        if name and not self._step and name not in (known := self._score()):
            raise Invalid(f"metric: the held-out part is not measured by {name!r}; it is by: {', '.join(known)}")

    def _progress(self, loss: float, rate: float, metrics: dict[str, float], pace: Pace) -> Progress:
        recipe, now = self.recipe, time.monotonic()
        epoch, steps = divmod(self._step, self._per_epoch)
        left = self._costs.left(epoch, steps * recipe.accumulate)
        measurements = -(-recipe.epochs // recipe.evaluate_every) - epoch // recipe.evaluate_every if left else 0
        return Progress(
            step=self._step,
            steps=self._steps,
            epoch=epoch + bool(steps),
            loss=loss,
            learning_rate=rate,
            samples_per_s=pace.samples_per_s(now),
            seconds_left=pace.seconds_left(now, left * self._accelerator.num_processes, measurements),
            metrics=metrics,
            best=self.best,
        )

    def _enough(self) -> bool:
        return self.recipe.patience is not None and self._waited.count > self.recipe.patience

    def _end(self) -> None:
        self._average.keep()
        if self._kept is not None:
            self.module.load_state_dict(self._kept)
        if self._accelerator.num_processes > 1:
            with torch.no_grad():
                for value in self.module.state_dict().values():
                    value.copy_(broadcast(value.contiguous()))
        self.module.eval()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def leads(self) -> bool:
        """This is the first of its processes: the one that prints, measures and writes."""
        return bool(self._accelerator.is_main_process)

    def state(self) -> dict[str, Any]:
        """All that it takes to go on from here: tensors and plain values, which `torch.load(weights_only=True)` reads."""
        return {
            "step": self._step,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "average": self._average.state(),
            "kept": self._kept,
            "metrics": self.metrics,
            "best": self.best,
            "waited": asdict(self._waited),
            "epoch_began": self._epoch_began,
            "rng": self._rng.get_state(),
            "chance": gather_object([chance.state(self.device)]),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises Invalid if that was of another number of processes."""
        if len(state["chance"]) != self._accelerator.num_processes:
            raise Invalid(f"the checkpoint is of {len(state['chance'])} processes; go on with as many")
        self._step = state["step"]
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._average.restore(state["average"])
        self._kept, self.metrics, self.best = state["kept"], state["metrics"], state["best"]
        self._waited = Waited(**state.get("waited", {}))  # not there: of an earlier release
        self._epoch_began = state["epoch_began"]
        self._rng.set_state(state["rng"])
        chance.restore(state["chance"][self._accelerator.process_index], self.device)


class _Loss(torch.nn.Module):
    """Network and loss as one: what spreads a network over devices has to see its forward, and a loss may call any part of it."""

    def __init__(self, network: torch.nn.Module, dataset: Dataset) -> None:
        super().__init__()
        self.network = network
        self._loss = dataset.loss

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._loss(self.network, batch)


def _samples(batch: Batch) -> int:
    """By its last array, which has a row for each (`tasks/base.py`)."""
    return len(batch[next(reversed(batch))])


def _copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """On the CPU: a GPU's memory is for training."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
