"""What decides a training: a recipe. Checked here; no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Recipe(BaseModel):
    """Everything that, with data and seed, decides the result. Read from `models/<name>/tune.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Over all processes: each takes its share, so that one recipe means one result, however many GPUs there are."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    momentum: float = 0.9
    """SGD only; Nesterov's form."""
    weight_decay: float = 5e-4
    """Not applied to biases and normalisation weights."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the rate falls to zero after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the steps in which the rate climbs."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients one step adds up: the memory of one, the result of one so many times as large (but for batch
    norms, pairs and triplets, which compare the samples of one batch). An epoch's last step takes what is left."""
    clip_norm: float | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the averaged weights that are scored and kept; 0: no averaging."""
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two measurements; the last epoch is always measured."""
    keep_statistics: bool = False
    """Batch norms go on normalising by what they saw before: small batches of few data tell less (and some published weights
    have theirs folded away)."""
    metric: str = ""
    """Which one chooses the best weights and is watched by `patience`; empty: the headline, which the data set tells first."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """So many measurements without a gain are borne, the next one ends the run; None: run to the end."""
    keep: Literal["best", "last"] = "best"
    """Which measured weights the run ends with. What chose the best ones flatters them a little: `last` is for data whose
    figures are to be published."""
    seed: int = 0

    @model_validator(mode="after")
    def _choosing(self) -> Self:
        if self.keep == "last" and self.patience is not None:
            raise ValueError('patience waits for better weights and keep = "last" wants none chosen; leave one out')
        return self
