"""The training loop on a toy: two clouds of points, told apart by one linear layer; and what a run leaves behind."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional

from app.card import Card
from app.catalogue import read_card
from app.errors import BadInput, Invalid, ModelFailed
from app.tuning.command import publish, read_recipe, told, tune
from app.tuning.progress import surer
from app.tuning.trainer import Progress, Recipe, Training, better

CARD = """task    = "image-classification"   # kept
source  = { kind = "module", entry = "Net" }
input   = { resize = [28, 28], crop = 28, mean = [0.1], std = [0.3], color = "gray" }

[about]
licence = "Apache-2.0"
accuracy = ""
"""


class Clouds:
    """64 points, two classes; the held-out part is the training part."""

    labels = ("left", "right")

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(7)
        self.target = torch.arange(64) % 2
        self.points = torch.randn(64, 4, generator=rng) + 2.0 * self.target.unsqueeze(1)

    def steps(self, batch_size: int) -> int:
        return 64 // batch_size

    def batches(self, batch_size: int, rng: torch.Generator, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for index in torch.randperm(64, generator=rng).split(batch_size):
            yield {"x": self.points[index], "target": self.target[index]}

    def loss(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(module(batch["x"]), batch["target"])

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        assert not module.training
        return {"accuracy": (module(self.points).argmax(1) == self.target).float().mean().item()}


class Broken(Clouds):
    def loss(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().loss(module, batch) * float("nan")


class Fading(Clouds):
    """Is best after the second epoch, so it says."""

    def __init__(self) -> None:
        super().__init__()
        self.told = iter([0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": next(self.told)}


def net() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def linear() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(4, 2)


def run(recipe: Recipe) -> tuple[torch.nn.Module, list[Progress]]:
    module = net()
    return module, list(Training(module, Clouds(), recipe))


@pytest.fixture
def card(tmp_path: Path) -> Card:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "card.toml").write_text(CARD)
    (folder / "model.py").write_text('"""A net."""\n')
    return read_card(folder)


def test_the_loss_falls_and_the_points_are_told_apart() -> None:
    module, told_of = run(Recipe(epochs=8, batch_size=16, learning_rate=0.1))
    assert told_of[-1].loss < 0.5 * told_of[0].loss
    assert told_of[-1].metrics["accuracy"] > 0.95
    assert not module.training


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "ema": 0.9, "clip_norm": 1.0, "precision": "bf16"}])
def test_the_same_seed_gives_the_same_weights(options: dict[str, object]) -> None:
    recipe = Recipe(epochs=2, batch_size=16, **options)
    (one, _), (two, _), (other, _) = run(recipe), run(recipe), run(recipe.model_copy(update={"seed": 1}))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)


class Noisy(Clouds):
    """Draws from the global generators too, as dropout and augmentation in NumPy do."""

    def loss(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        noise = torch.randn_like(batch["x"]) * float(np.random.default_rng(np.random.randint(1000)).random())
        return super().loss(module, batch | {"x": functional.dropout(batch["x"] + noise, 0.2)})


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adamw", "ema": 0.9, "clip_norm": 1.0, "evaluate_every": 2}, {"patience": 0, "learning_rate": 1e-9}],
)
@pytest.mark.parametrize("after", [1, 3, 4, 6, 11])
def test_a_run_that_was_killed_after_any_step_ends_with_the_same_weights(
    options: dict[str, Any], after: int, tmp_path: Path
) -> None:
    recipe = Recipe(**{"epochs": 3, "batch_size": 16, **options})
    whole = Training(net(), Noisy(), recipe)
    undisturbed = [(one.step, one.loss, one.learning_rate, one.metrics) for one in whole]
    killed = Training(net(), Noisy(), recipe)
    for progress in killed:
        if progress.step == min(after, len(undisturbed)):
            torch.save(killed.state(), tmp_path / "state.pt")
            break
    torch.manual_seed(99)  # another process begins otherwise
    np.random.seed(99)
    other = net().apply(lambda part: part.reset_parameters() if isinstance(part, torch.nn.Linear) else None)
    again = Training(other, Noisy(), recipe)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = [(one.step, one.loss, one.learning_rate, one.metrics) for one in again]
    assert rest == undisturbed[min(after, len(undisturbed)) :]
    assert again.metrics == whole.metrics
    for one, other in zip(whole.module.state_dict().values(), again.module.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_best_weights_that_were_measured_are_kept_and_a_run_without_gain_ends() -> None:
    training = Training(net(), Fading(), Recipe(epochs=9, batch_size=16, patience=2))
    told_of = list(training)
    assert [progress.metrics["accuracy"] for progress in told_of if progress.metrics] == [0.5, 0.9, 0.8, 0.7, 0.6]
    assert training.metrics == {"accuracy": 0.9}
    reached = Training(net(), Fading(), Recipe(epochs=9, batch_size=16))
    weights = next(
        {name: value.clone() for name, value in reached.module.state_dict().items()} for one in reached if one.step == 8
    )
    assert all(torch.equal(value, training.module.state_dict()[name]) for name, value in weights.items())


def test_figures_to_be_published_are_those_of_the_last_weights() -> None:
    training = Training(net(), Fading(), Recipe(epochs=3, batch_size=16, keep="last"))
    last = [progress.metrics for progress in training][-1]
    assert training.metrics == last == {"accuracy": 0.8}
    plain = Training(net(), Clouds(), Recipe(epochs=3, batch_size=16, keep="last"))
    assert list(plain)
    assert all(map(torch.equal, training.module.state_dict().values(), plain.module.state_dict().values()))
    with pytest.raises(ValueError, match="leave one out"):
        Recipe(keep="last", patience=2)


def test_statistics_may_be_kept() -> None:
    def seen(keep: bool) -> torch.Tensor:
        return run(Recipe(epochs=1, batch_size=16, keep_statistics=keep))[0][1].running_mean

    assert torch.equal(seen(True), torch.zeros(8)) and not torch.equal(seen(False), torch.zeros(8))


def test_weights_that_were_better_before_are_kept() -> None:
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    training = Training(module, Fading(), Recipe(epochs=2, batch_size=16), reached={"accuracy": 0.95})
    list(training)
    assert training.metrics == {"accuracy": 0.95}
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_errors_shall_fall_and_all_else_rise() -> None:
    assert better({"word_error_rate": 0.1}, {"word_error_rate": 0.2})
    assert better({"accuracy": 0.9, "loss": 3.0}, {"accuracy": 0.8})
    assert not better({"accuracy": 0.8}, {"accuracy": 0.8})


def test_where_the_headline_stands_still_the_loss_decides() -> None:
    assert surer({"accuracy": 1.0, "loss": 0.1}, {"accuracy": 1.0, "loss": 0.6})
    assert not surer({"accuracy": 1.0, "loss": 0.6}, {"accuracy": 1.0, "loss": 0.6})
    assert not surer({"accuracy": 0.9, "loss": 0.1}, {"accuracy": 1.0, "loss": 0.6})
    assert surer({"accuracy": 1.0, "loss": 0.1}, {"accuracy": 1.0, "loss": 0.6, "macro_f1": 1.0}, "accuracy")
    assert not surer({"loss": 0.6}, {"loss": 0.6})


class Settled(Clouds):
    """Is all right from the first epoch on, and from then on surer of it, so it says."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = iter([0.5, 0.4, 0.3, 0.2, 0.1])

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": 1.0, "loss": next(self.losses)}


def test_patience_waits_for_the_headline_and_the_surest_weights_are_kept() -> None:
    training = Training(net(), Settled(), Recipe(epochs=5, batch_size=16, patience=2))
    assert [progress.metrics["loss"] for progress in training if progress.metrics] == [0.5, 0.4, 0.3, 0.2]
    assert training.metrics == {"accuracy": 1.0, "loss": 0.2}


class Uneven(Clouds):
    """Names the largest class in its first epochs, and is surer each time that it is not always right."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.told = iter([{"accuracy": 0.8, "loss": loss} for loss in losses] + [{"accuracy": 1.0, "loss": 0.1}])

    def score(self, module: torch.nn.Module) -> dict[str, float]:
        return next(self.told)


def test_patience_bears_epochs_in_which_only_the_loss_tells_that_something_is_learnt() -> None:
    training = Training(net(), Uneven([0.6, 0.55, 0.5, 0.45, 0.4]), Recipe(epochs=6, batch_size=16, patience=1))
    list(training)
    assert training.metrics["accuracy"] == 1.0


def test_a_loss_that_hardly_falls_is_not_waited_for() -> None:
    training = Training(net(), Uneven([0.600, 0.598, 0.596, 0.594]), Recipe(epochs=5, batch_size=16, patience=1, warmup=0.0))
    list(training)
    assert training.metrics == {"accuracy": 0.8, "loss": 0.596}


def test_no_patience_is_lost_while_the_learning_rate_climbs() -> None:
    training = Training(net(), Uneven([0.6, 0.6, 0.6, 0.6]), Recipe(epochs=5, batch_size=16, patience=0, warmup=0.9))
    list(training)
    assert training.metrics["accuracy"] == 1.0


def test_time_left_counts_what_later_epochs_cost() -> None:
    training = Training(net(), Clouds(), Recipe(epochs=4, batch_size=16), work=lambda epoch: (0.1, 0.1, 0.1, 1.0)[epoch])
    told = list(training)
    per_epoch = len(told) // 4
    done, left = 0.1 * (3 * per_epoch - 1), 0.1 + per_epoch  # 3.7 times as much; of steps less than half
    last = told[3 * per_epoch - 2]
    trained_s = last.step * 16 / last.samples_per_s
    assert last.seconds_left == pytest.approx(trained_s / done * left, rel=0.5), "but for the measurements"
    assert told[-1].seconds_left == 0


def test_progress_counts_to_the_end_and_measures_when_asked() -> None:
    _, told_of = run(Recipe(epochs=3, batch_size=16, evaluate_every=2, warmup=0.25, learning_rate=0.1))
    assert [progress.step for progress in told_of] == list(range(1, 13))
    assert {progress.steps for progress in told_of} == {12}
    assert [progress.epoch for progress in told_of if progress.metrics] == [2, 3]
    assert max(progress.learning_rate for progress in told_of) == pytest.approx(0.1)
    assert told_of[0].learning_rate < told_of[2].learning_rate > told_of[-1].learning_rate
    assert told_of[-1].seconds_left == 0
    assert all(progress.samples_per_s > 0 for progress in told_of)


def test_averaged_weights_are_kept_at_the_end() -> None:
    plain, _ = run(Recipe(epochs=2, batch_size=16))
    averaged, _ = run(Recipe(epochs=2, batch_size=16, ema=0.9))
    assert not torch.equal(plain[0].weight, averaged[0].weight)


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights() -> None:
    module = net()
    before = module[0].weight.clone()
    with pytest.raises(ModelFailed, match="loss became nan at step 1; lower learning_rate"):
        next(iter(Training(module, Broken(), Recipe(batch_size=16))))
    assert torch.equal(module[0].weight, before)


class Lost(Clouds):
    def score(self, module: torch.nn.Module) -> dict[str, float]:
        return super().score(module) | {"loss": float("nan")}


@pytest.mark.parametrize(("clip", "words"), [(None, "lower learning_rate, or set clip_norm"), (1.0, "lower learning_rate$")])
def test_weights_whose_measured_loss_is_no_number_are_not_kept(clip: float | None, words: str) -> None:
    with pytest.raises(ModelFailed, match=f"loss of the held-out part became nan at step 4; {words}"):
        list(Training(net(), Lost(), Recipe(epochs=1, batch_size=16, clip_norm=clip)))


def test_too_little_data_for_one_batch_is_said() -> None:
    with pytest.raises(Invalid, match="does not fill one batch of 65; lower batch_size"):
        Training(net(), Clouds(), Recipe(batch_size=65))


def test_a_misspelt_field_is_answered_with_the_known_ones(card: Card) -> None:
    with pytest.raises(Invalid, match=r"epoch: .*known: epochs, batch_size"):
        read_recipe(card, {"epoch": "3"})


def test_overrides_stand_above_the_file_and_its_data_table_is_for_the_dataset(card: Card) -> None:
    (card.folder / "tune.toml").write_text("epochs = 5\nseed = 4\n[data]\nsides = [8]\n")
    recipe, options = read_recipe(card, {"epochs": "2"})
    assert (recipe.epochs, recipe.seed, options) == (2, 4, {"sides": [8]})


def test_the_data_table_is_overridden_with_toml_values(card: Card) -> None:
    (card.folder / "tune.toml").write_text("[data]\nsides = [8]\nlabel_smoothing = 0.1\n")
    assert read_recipe(card, {"data.sides": "[]"})[1] == {"sides": [], "label_smoothing": 0.1}
    with pytest.raises(Invalid, match=r"data.sides: \[8 is no TOML value"):
        read_recipe(card, {"data.sides": "[8"})


def test_a_result_is_whole_or_absent_and_its_card_tells_hash_and_accuracy(card: Card, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(card, net(), ["left", "right"], {"accuracy": 0.98}, out)
    weights = out / "weights.safetensors"
    assert sorted(path.name for path in out.iterdir()) == ["card.toml", "labels.txt", "model.py", "weights.safetensors"]
    assert weights.stat().st_mode & 0o777 == 0o644
    assert load_file(weights)["0.weight"].dtype == torch.float16
    assert (out / "labels.txt").read_text() == "left\nright\n"
    written = read_card(out)
    assert written.source.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert written.about.accuracy == "98.00 % accuracy on the held-out part"


def test_a_full_disk_leaves_the_old_weights(card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    publish(card, net(), [], {"accuracy": 0.5}, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.tuning.publish.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        publish(card, net(), [], {"accuracy": 0.9}, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_card_is_told_twice_and_keeps_its_other_lines() -> None:
    once = told(CARD, "90 %", "a" * 64)
    assert told(once, "90 %", "a" * 64) == once
    assert "# kept" in once
    assert 'entry = "Net", sha256 = "' + "a" * 64 in told(once, "91 %", "a" * 64)
    assert 'accuracy = "91 %"' in told(CARD.replace('accuracy = ""\n', ""), "91 %", "a" * 64)


def test_unreadable_data_names_the_folder_and_what_belongs_there(card: Card, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty holds no train.npz.*give one of these"):
        tune(card, tmp_path / "empty", tmp_path / "out", Recipe(), Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
