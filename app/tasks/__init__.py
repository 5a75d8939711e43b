"""The tasks, by name. Each is loaded on first use, so that a frontend never imports a program and a worker never a codec."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from app.card import Card
from app.settings import Settings
from app.tasks.base import Codec, Files, Reader, Recipe, Sample


@dataclass(frozen=True, slots=True)
class Task:
    """Where a task's classes are, as `module:Class`."""

    input: str
    codec: str
    program: str
    dataset: str | None = None
    check: str | None = None
    """A `Check`, where models of the task can be tuned over HTTP."""
    becomes: tuple[str, ...] = ()
    """Further tasks that its models can be tuned to."""
    told_by: str | None = None
    """A function from a data set's folder to the one of these tasks, or its own, that the data is for; None: for none of them."""
    bare: bool = False
    """Its data may be sent as one plain file, in no archive."""


class Check(Protocol):
    """Looks through a data set that a caller sent, before anything is trained. No torch."""

    def __call__(self, root: Path, card: Card, files: Files, into: Path, *, validation: float, seed: int) -> dict[str, Any]:
        """The report: what there is, and what `Findings.told` says. Without problems, `into` holds what training reads, and
        `sample.*`, one input of what was kept out. `card` and `files`: of the base model. `validation`: the share to keep out
        where the data does not say itself.
        """
        ...


TASKS: dict[str, Task] = {
    "image-classification": Task(
        input="app.tasks.image.input:ImageInput",
        codec="app.tasks.image.codec:ImageCodec",
        program="app.tasks.image.program:ImageProgram",
        dataset="app.tasks.image.dataset:ImageDataset.open",
        check="app.tasks.image.folders:check",
    ),
    "text-embedding": Task(
        input="app.tasks.text.input:TextInput",
        codec="app.tasks.text.codec:TextCodec",
        program="app.tasks.text.program:TextProgram",
        check="app.tasks.text.examples:check_pairs",
        becomes=("text-classification",),
        told_by="app.tasks.text.table:task_of",
        bare=True,
    ),
    "text-classification": Task(
        input="app.tasks.text.input:TextInput",
        codec="app.tasks.text.codec:TextClassifierCodec",
        program="app.tasks.text.program:TextClassifierProgram",
        check="app.tasks.text.examples:check_labels",
        bare=True,
    ),
    "speech-recognition": Task(
        input="app.tasks.speech.input:SpeechInput",
        codec="app.tasks.speech.codec:SpeechCodec",
        program="app.tasks.speech.program:SpeechProgram",
        dataset="app.tasks.speech.dataset:SpeechDataset.open",
        check="app.tasks.speech.transcripts:check",
    ),
}

READERS = {
    "image-classification": "app.tasks.image.codec:PictureReader",
    "speech-recognition": "app.tasks.speech.codec:SoundReader",
}


def resolve(path: str) -> Any:
    """Import `module:Class`."""
    module, _, names = path.partition(":")
    return reduce(getattr, names.split("."), import_module(module))


def prepare() -> None:
    """Import all that codecs and readers may need: where no descriptor is left, nothing can be imported."""
    for task in TASKS.values():
        resolve(task.codec)
    for reader in READERS.values():
        resolve(reader).prepare()


def make_codec(card: Card, files: Files, meta: dict[str, Any], settings: Settings | None = None) -> Codec:
    """The codec of a card whose worker told `meta`, held to the limits of `settings` (None: the defaults)."""
    limits: dict[str, float] = {}
    if settings is not None and card.task == "image-classification":
        limits = {"max_pixels": settings.max_pixels_mp * 1_000_000}
    elif settings is not None and card.task == "speech-recognition":
        limits = {"max_seconds": settings.max_audio_min * 60}
    codec: Codec = resolve(TASKS[card.task].codec)(card, files, meta, **limits)
    return codec


@lru_cache(64)
def make_reader(recipe: Recipe) -> Reader:
    """What decodes as `recipe` says."""
    reader: Reader = resolve(READERS[recipe.task])(
        resolve(TASKS[recipe.task].input).model_validate_json(recipe.input), recipe.limit
    )
    return reader


def card_inputs(card: Card) -> list[bytes | str]:
    """What stands in the card's `sample.*`: warm-up, readiness, golden test, example. Empty if there is no such file."""
    for path in sorted(card.folder.glob("sample.*")):
        if path.suffix != ".json":
            return [path.read_bytes()]
        inputs = json.loads(path.read_text(encoding="utf-8"))["inputs"]
        return [inputs] if isinstance(inputs, str) else list(inputs)
    return []


def card_samples(card: Card, codec: Codec) -> list[Sample]:
    """The samples of the card's inputs."""
    return [sample for item in card_inputs(card) for sample in codec.decode(item).samples]
