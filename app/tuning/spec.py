"""What a caller asks for when a model is to be tuned. Checked here, before anything else happens. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.card import Card, Name
from app.errors import Conflict, Invalid
from app.tasks import TASKS

Method = Literal["full", "head", "lora"]


class Spec(BaseModel):
    """`spec` of POST /finetune. What is not given is chosen by task and method (`filled`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"example": {"name": "photos", "base": "resnet18"}}
    )

    name: Name = Field(description="the model that it becomes")
    base: str = Field(description="the model to start from")
    task: str | None = Field(
        None, description="what the new model is for, where the base can be tuned to several; without it, the data says"
    )
    method: Method = Field(
        "full",
        description="full: the classifier learns, then all weights do; head: only the classifier; "
        "lora: the classifier, then small matrices beside the weights, which are merged into them at the end",
    )
    start: Literal["weights", "fresh"] = Field("weights", description="go on from the base model's weights, or from random ones")
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    schedule: Literal["cosine", "linear"] | None = Field(None, description="how the rate falls after the warm-up")
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="share of the steps in which the rate climbs")
    accumulate: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="batches that one step adds up: the memory of one, the result of one so many times as large, but for batch "
        "norms, pairs and triplets, which compare the samples of one batch",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    metric: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="what chooses the best weights, and what patience watches; not given: the headline"
    )
    patience: Annotated[int, Field(ge=0)] | None = Field(
        None, description="measurements, one an epoch, without a gain that are borne; the next one ends the job"
    )
    evaluate_every: Annotated[int, Field(ge=1)] | None = Field(None, description="epochs between two measurements")
    keep: Literal["best", "last"] | None = Field(None, description="the best weights that were measured, or the last ones")
    precision: Literal["auto", "fp32", "bf16"] | None = Field(None, description="auto: bf16 where the processor computes in it")
    keep_statistics: bool | None = Field(None, description="batch norms keep the statistics that they came with")
    per_epoch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="texts, or pairs of them, in an epoch; where there are more, the next epoch takes the next ones"
    )
    rank: Annotated[int, Field(ge=1, le=256)] | None = Field(None, description="of the matrices of method lora")
    small_first: bool | None = Field(
        None,
        description="pictures are smaller, by 5/7, in the first two thirds of the epochs, but for the first step: half the work. "
        "Where the network takes them, and not below 128 pixels",
    )
    augment: bool | None = Field(None, description="change pictures or recordings at random; null: as the data wants")
    traffic: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of the requests for `name` that the new version answers at once; the others answer the rest"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share kept out, where the data does not say itself")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


_ALL = {"weight_decay": 5e-4, "schedule": "cosine", "warmup": 0.15, "accumulate": 1, "label_smoothing": 0.0, "ema": 0.0} | {
    "precision": "fp32",
    "keep_statistics": False,
}
_IMAGE = {"epochs": 3, "batch_size": 32, "label_smoothing": 0.1, "clip_norm": 1.0} | {
    "keep_statistics": True,
    "small_first": True,
}
_TEXT = {"epochs": 3, "batch_size": 32, "optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 1.0} | {
    "precision": "auto",
    "per_epoch": 12_288,
}
_SPEECH = {"optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 1.0, "augment": True}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "image-classification": {
        "full": _IMAGE | {"optimizer": "sgd", "learning_rate": 1e-3},
        "lora": _IMAGE | {"optimizer": "adamw", "learning_rate": 1e-3, "rank": 16},
        "head": {"epochs": 60, "batch_size": 32, "optimizer": "adamw", "learning_rate": 3e-3, "augment": False, "patience": 10},
        "fresh": {"epochs": 20, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.05},
    },
    "speech-recognition": {
        "full": _SPEECH | {"epochs": 10, "batch_size": 8, "learning_rate": 1e-4},
        "head": _SPEECH | {"epochs": 10, "batch_size": 8, "learning_rate": 1e-3, "patience": 3},
        "lora": _SPEECH | {"epochs": 10, "batch_size": 8, "learning_rate": 1e-3, "rank": 16},
        "fresh": _SPEECH | {"epochs": 50, "batch_size": 32, "learning_rate": 1.5e-3, "ema": 0.998, "evaluate_every": 5},
    },
    "text-classification": {
        "full": _TEXT | {"learning_rate": 1e-4},
        "lora": _TEXT | {"learning_rate": 1e-3, "rank": 16},
        "head": _TEXT | {"epochs": 40, "learning_rate": 3e-3, "patience": 5, "precision": "fp32", "per_epoch": None},
    },
    "text-embedding": {
        "full": _TEXT | {"batch_size": 32, "learning_rate": 5e-5},
        "lora": _TEXT | {"batch_size": 32, "learning_rate": 5e-4, "rank": 16},
    },
}
"""Task → method, or `fresh` where there are no weights to start from → what gives a good result for callers who say no more."""


_CLASSES = ("image-classification", "text-classification")
_TEXTS = ("text-classification", "text-embedding")
_NO_USE: dict[str, tuple[tuple[str, ...], str]] = {
    "label_smoothing": (_CLASSES, "what is learnt there are no classes whose targets could be smoothed"),
    "augment": (("image-classification", "speech-recognition"), "texts are not changed at random"),
    "keep_statistics": (("image-classification",), "their networks have no batch norms"),
    "small_first": (("image-classification",), "only pictures come in sizes"),
    "per_epoch": (_TEXTS, "all of them make an epoch"),
}
"""Field → the tasks that have a use for it, and why the others have none."""


def one_task(name: str, task: str, cards: Iterable[Card]) -> None:
    """Raise Conflict if `name` is a model for anything but `task`: all versions of a name are for the same."""
    for card in cards:
        if card.model == name and card.task != task:
            raise Conflict(f"{name!r} is a model for {card.task} already; choose another name")


def filled(spec: Spec, task: str) -> Spec:
    """The spec with every field set that task and method want: what a job shows, and what repeats it. Raises Invalid for a
    method that the task does not have.
    """
    methods, method = _DEFAULTS[task], _method(spec)
    if method not in methods:
        if method == "fresh":
            raise Invalid(f"spec: start: models for {task} are not begun afresh; use weights")
        raise Invalid(f"spec: method: models for {task} are tuned by one of: {', '.join(sorted(methods.keys() - {'fresh'}))}")
    _check_use(spec, task)
    given = {name: value for name, value in spec.model_dump().items() if value is not None}
    wanted = _ALL | methods[method]
    if spec.patience is not None:  # it may end the job before it has seen a picture of the real size
        if spec.small_first:
            raise Invalid(
                "spec: small_first: its last epochs see the real size, and patience may end the job before; leave one out"
            )
        wanted |= {"small_first": False} if "small_first" in wanted else {}
    if spec.keep == "last":
        if spec.patience is not None:
            raise Invalid('spec: patience waits for better weights and keep = "last" wants none chosen; leave one out')
        wanted |= {"patience": None}
    return Spec(**(wanted | given | {"task": task}))


def _check_use(spec: Spec, task: str) -> None:
    """Raise Invalid for what would be ignored. 0 and false ask for nothing."""
    for name, (tasks, why) in _NO_USE.items():
        if getattr(spec, name) and task not in tasks:
            raise Invalid(f"spec: {name}: has no use for {task}: {why}; leave it out")
    if spec.rank is not None and spec.method != "lora":
        raise Invalid(f"spec: rank: is that of lora's matrices, and {spec.method} has none; leave it out, or use method lora")
    for name in ("small_first", "augment"):
        if getattr(spec, name) and spec.method == "head" and task == "image-classification":
            raise Invalid(
                f"spec: {name}: for method head the network sees each picture once, as it is; leave it out, or use full or lora"
            )


def _method(spec: Spec) -> str:
    if spec.start == "fresh" and spec.method != "full":
        raise Invalid(f"spec: method: fresh weights all have to learn, {spec.method} would leave most as they are; use full")
    return "fresh" if spec.start == "fresh" else spec.method


def possible(spec: Spec, task: str) -> list[str]:
    """What a base model of this task can be tuned to by the method and fields of the spec. Raises Invalid if nothing."""
    found, refusals = [], []
    for one in (task, *TASKS[task].becomes):
        try:
            filled(spec, one)
            found.append(one)
        except Invalid as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def understood(spec: Spec, task: str) -> Spec:
    """The spec for a base model of this task: filled, or as it is where only the data will tell what the new model is for.

    Raises Invalid for a task that the base cannot be tuned to, and for a method that no task has which it can.
    """
    tasks = (task, *TASKS[task].becomes)
    if spec.task is not None and spec.task not in tasks:
        raise Invalid(f"spec: task: {spec.base!r} is for {task}, and can be tuned to one of: {', '.join(tasks)}")
    if spec.task is None and len(tasks) > 1:
        possible(spec, task)
        return spec
    return filled(spec, spec.task or task)
