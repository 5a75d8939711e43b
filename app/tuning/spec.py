"""What a caller asks for when a model is to be tuned. Checked here, before anything else happens. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.card import Name
from app.errors import Invalid

Method = Literal["full", "head"]


class Spec(BaseModel):
    """`spec` of POST /finetune. What is not given is chosen by task and method (`filled`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"example": {"name": "photos", "base": "resnet18"}}
    )

    name: Name = Field(description="the model that it becomes")
    base: str = Field(description="the model to start from")
    method: Method = Field("full", description="full: the classifier learns, then all weights do; head: only the classifier")
    start: Literal["weights", "fresh"] = Field("weights", description="go on from the base model's weights, or from random ones")
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    patience: Annotated[int, Field(ge=0)] | None = None
    evaluate_every: Annotated[int, Field(ge=1)] | None = Field(None, description="epochs between two measurements")
    keep: Literal["best", "last"] | None = Field(None, description="the best weights that were measured, or the last ones")
    precision: Literal["fp32", "bf16"] | None = None
    keep_statistics: bool | None = Field(None, description="batch norms keep the statistics that they came with")
    augment: bool | None = Field(None, description="change pictures or recordings at random; null: as the data wants")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share kept out, where the data does not say itself")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


_ALL = {"weight_decay": 5e-4, "warmup": 0.15, "label_smoothing": 0.0, "ema": 0.0, "precision": "fp32", "keep_statistics": False}
_SPEECH = {"optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 1.0, "augment": True}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "image-classification": {
        "full": {"epochs": 4, "batch_size": 32, "optimizer": "sgd", "learning_rate": 1e-3, "label_smoothing": 0.1}
        | {"keep_statistics": True, "clip_norm": 1.0},
        "head": {"epochs": 60, "batch_size": 32, "optimizer": "adamw", "learning_rate": 3e-3, "augment": False, "patience": 10},
        "fresh": {"epochs": 20, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.05},
    },
    "speech-recognition": {
        "full": _SPEECH | {"epochs": 10, "batch_size": 8, "learning_rate": 1e-4},
        "head": _SPEECH | {"epochs": 10, "batch_size": 8, "learning_rate": 1e-3, "patience": 3},
        "fresh": _SPEECH | {"epochs": 50, "batch_size": 32, "learning_rate": 1.5e-3, "ema": 0.998, "evaluate_every": 5},
    },
}
"""Task → method, or `fresh` where there are no weights to start from → what gives a good result for callers who say no more."""


def filled(spec: Spec, task: str) -> Spec:
    """The spec with every field set that task and method want: what a job shows, and what repeats it. Raises Invalid for a
    method that the task does not have.
    """
    methods, method = _DEFAULTS[task], "fresh" if spec.start == "fresh" else spec.method
    if method not in methods:
        raise Invalid(f"spec: method: models for {task} are tuned by one of: {', '.join(methods)}")
    given = {name: value for name, value in spec.model_dump().items() if value is not None}
    wanted = _ALL | methods[method]
    if spec.keep == "last":
        if spec.patience is not None:
            raise Invalid('spec: patience waits for better weights and keep = "last" wants none chosen; leave one out')
        wanted |= {"patience": None}
    return Spec(**(wanted | given))
