"""What each process of `test_several_processes.py` runs: a training, cut off and gone on with; its weights go to a file."""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from app.tuning.device import leave
from app.tuning.trainer import Recipe, Training
from tests.unit.tuning.test_trainer import Clouds, Noisy, linear, net

OUT = Path(sys.argv[1])


def run(name: str, training: Training, stop: int | None = None) -> None:
    losses = []
    for progress in training:
        losses.append(progress.loss)
        if progress.step == stop:
            state = training.state()
            if training.leads:
                torch.save(state, OUT / f"{name}.state")
            return
    rank = PartialState().process_index
    weights = training.module.state_dict()
    torch.save({"weights": weights, "losses": losses, "metrics": training.metrics, "best": training.best}, OUT / f"{name}.{rank}")


def main() -> None:
    plain = Recipe(epochs=2, batch_size=16, accumulate=3, optimizer="adamw", learning_rate=0.01, clip_norm=1.0)
    run("plain", Training(linear(), Clouds(), plain))
    shaken = plain.model_copy(update={"ema": 0.9, "precision": "bf16"})
    run("whole", Training(net(), Noisy(), shaken))
    run("cut", Training(net(), Noisy(), shaken), stop=3)
    PartialState().wait_for_everyone()
    again = Training(net(), Noisy(), shaken)
    again.restore(torch.load(OUT / "cut.state", weights_only=True))
    run("again", again)


main()
atexit.register((OUT / "ended as usual").touch)
leave()
