"""The tasks, by name. Each is loaded on first use, so that a frontend never imports a program and a worker never a codec."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """Where a task's classes are, as `module:Class`."""

    codec: str
    program: str
    dataset: str | None = None


TASKS: dict[str, Task] = {
    "image-classification": Task(
        codec="app.tasks.image.codec:ImageCodec",
        program="app.tasks.image.program:ImageProgram",
        dataset="app.tasks.image.dataset:ImageDataset",
    ),
    "text-embedding": Task(
        codec="app.tasks.text.codec:TextCodec",
        program="app.tasks.text.program:TextProgram",
    ),
    "speech-recognition": Task(
        codec="app.tasks.speech.codec:SpeechCodec",
        program="app.tasks.speech.program:SpeechProgram",
        dataset="app.tasks.speech.dataset:SpeechDataset",
    ),
}


def resolve(path: str) -> Any:
    """Import `module:Class`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
