"""What a step takes in, how the rate falls, and which metric chooses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from app.errors import Invalid, ModelFailed
from app.tuning import trainer as module
from app.tuning.spec import Spec, filled
from app.tuning.trainer import Recipe, Training
from tests.unit.tuning.test_trainer import Broken, Clouds, Noisy, linear, net


class Ragged(Clouds):
    """64 points in batches of at most so many: the last one of an epoch is short. In the same order in every epoch."""

    def steps(self, batch_size: int) -> int:
        return -(-64 // batch_size)

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for index in torch.arange(64).split(batch_size):
            yield {"x": self.points[index], "target": self.target[index]}


class TwoFigures(Clouds):
    """The headline rises, the loss falls until the second epoch, so it says."""

    def __init__(self) -> None:
        super().__init__()
        self.told = iter([(0.1, 9.0), (0.5, 3.0), (0.6, 2.0), (0.7, 4.0), (0.8, 5.0), (0.9, 6.0)])

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        accuracy, loss = next(self.told)
        return {"accuracy": accuracy, "loss": loss}


def trained(recipe: Recipe, data: Clouds) -> dict[str, torch.Tensor]:
    training = Training(linear(), data, recipe)
    assert list(training)
    return training.module.state_dict()


@pytest.mark.parametrize("whole", [64, 40])
def test_batches_that_are_added_up_weigh_what_one_large_batch_weighs(whole: int):
    """64 = 24 + 24 + 16; 40 and then what is left of the epoch: 8 · 5 and 8 · 3."""
    size, parts = {64: (24, 3), 40: (8, 5)}[whole]
    options: dict[str, Any] = {"epochs": 3, "learning_rate": 0.1, "clip_norm": 0.5}
    large = trained(Recipe(batch_size=whole, **options), Ragged())
    parted = trained(Recipe(batch_size=size, accumulate=parts, **options), Ragged())
    for name, value in large.items():
        torch.testing.assert_close(parted[name], value, rtol=1e-5, atol=1e-6)


def test_steps_and_samples_are_counted_as_they_are(monkeypatch: pytest.MonkeyPatch):
    trained_on: list[tuple[int, int]] = []
    monkeypatch.setattr(module.Pace, "trained", lambda self, samples, batches: trained_on.append((samples, batches)))
    told = list(Training(linear(), Ragged(), Recipe(epochs=2, batch_size=24, accumulate=2)))
    assert [(one.step, one.steps, one.epoch) for one in told] == [(1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2)]
    assert trained_on == [(48, 2), (16, 1)] * 2


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_checkpoint_falls_on_a_step_and_going_on_is_no_different(after: int):
    recipe = Recipe(epochs=2, batch_size=8, accumulate=5, schedule="linear", optimizer="adamw")
    whole = Training(net(), Noisy(), recipe)
    losses = [one.loss for one in whole]
    killed = Training(net(), Noisy(), recipe)
    state = next(killed.state() for one in killed if one.step == after)
    again = Training(net(), Noisy(), recipe)
    again.restore(state)
    assert [one.loss for one in again] == losses[after:]
    assert all(map(torch.equal, whole.module.state_dict().values(), again.module.state_dict().values()))


def test_what_was_made_again_after_a_kill_is_in_no_figure(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    class Slow(Clouds):
        def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
            for batch in super().batches(batch_size, rng, epoch):
                clock[0] += 1.0
                yield batch

    recipe = Recipe(epochs=2, batch_size=8, accumulate=2)
    first = Training(linear(), Slow(), recipe)
    state = next(first.state() for one in first if one.step == 3)
    again = Training(linear(), Slow(), recipe)
    again.restore(state)
    told = next(iter(again))
    assert (told.step, told.samples_per_s, told.seconds_left) == (4, 8.0, 8.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_after_the_climb_the_rate_falls_to_nothing(schedule: Any):
    recipe = Recipe(epochs=5, batch_size=16, schedule=schedule, warmup=0.2, learning_rate=0.1)
    rates = [one.learning_rate for one in Training(linear(), Clouds(), recipe)]
    assert rates[3] == pytest.approx(0.1) and rates[:4] == sorted(rates[:4])
    falls = [left - right for left, right in pairwise(rates[4:])]
    assert all(fall > 0 for fall in falls) and rates[-1] < 0.01
    assert (max(falls) - min(falls) < 1e-9) == (schedule == "linear")


def test_the_named_metric_chooses_and_is_watched():
    training = Training(linear(), TwoFigures(), Recipe(epochs=5, batch_size=16, metric="loss", patience=1))
    told = list(training)
    assert training.metrics == {"accuracy": 0.6, "loss": 2.0} and told[-1].epoch == 4
    assert training.best == told[-1].best == {"epoch": 2, "step": 8, "metrics": training.metrics}
    assert [one.best["epoch"] if one.best else 0 for one in told[3::4]] == [1, 2, 2, 2]
    assert told[2].best is None


def test_without_a_name_the_headline_chooses():
    training = Training(linear(), TwoFigures(), Recipe(epochs=5, batch_size=16))
    assert list(training) and training.metrics["accuracy"] == 0.8


def test_a_metric_that_the_data_does_not_have_is_refused_before_the_first_step():
    training = Training(linear(), TwoFigures(), Recipe(epochs=5, batch_size=16, metric="acuracy"))
    with pytest.raises(Invalid, match="not measured by 'acuracy'; it is by: accuracy, loss"):
        next(iter(training))
    assert training.step == 0


def test_a_loss_that_is_no_number_stops_before_the_step_of_several_batches():
    model = linear()
    before = model.weight.clone()
    with pytest.raises(ModelFailed, match="at step 1"):
        next(iter(Training(model, Broken(), Recipe(batch_size=8, accumulate=3))))
    assert torch.equal(model.weight, before)


def test_a_job_shows_every_field_that_repeats_it():
    spec = filled(Spec(name="photos", base="resnet18"), "image-classification")
    assert (spec.schedule, spec.accumulate, spec.metric) == ("cosine", 1, None)
    assert filled(Spec(name="p", base="b", accumulate=4, metric="accuracy"), "image-classification").accumulate == 4
