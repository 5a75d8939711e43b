"""What a worker is told; for what a computation is chosen, where the result lies, and what the outcome is called."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from app.card import Card
from app.engine.compute import Engine, Precision

KEY = 16  # letters of a folder's name that tell for what it was made


class Spec(msgspec.Struct, frozen=True):
    """All that a worker is told at birth."""

    name: str
    card: str
    files: dict[str, str]
    device: str
    threads: int | None
    precision: str
    compute: str
    home: str
    address: str
    control: str
    blackbox: str


class Order(msgspec.Struct, frozen=True):
    """What to choose for. `precision` and `engine` may leave only one possibility."""

    card: str
    files: dict[str, str]
    threads: int
    precision: str
    engine: str
    home: str

    def folder(self) -> Path:
        """Where the result lies: a new place whenever model, sample, code, libraries, processor or wishes change."""
        card = Card.model_validate_json(self.card)
        stamps = [(name, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for name, path in sorted(self.files.items())]
        beside = _digest([*card.folder.glob("*.py"), *card.folder.glob("sample.*")])
        libraries = [_version(name) for name in ("torch", "transformers", "openvino")]
        model = [card.task, card.source.model_dump_json(), card.input, stamps, beside]
        known = [model, self.threads, self.precision, self.engine, _own_code(), libraries, _processor()]
        key = hashlib.sha256(msgspec.json.encode(known)).hexdigest()[:KEY]
        return Path(self.home) / "compute" / f"{card.name}-{key}"


class Choice(msgspec.Struct, frozen=True):
    """The outcome, as `GET /models/{name}` shows it."""

    engine: Engine
    precision: Precision
    why: str
    measured: dict[str, Any]
    threads: int = 0
    """0: as many as the worker has by its settings."""
    close_calls: str = ""
    """The precision that decides between classes that are close, where it is another one."""


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


@cache
def _own_code() -> str:
    """What decides how a model is computed, and when two computations agree."""
    app = Path(__file__).parents[1]
    engine = (app / "engine" / f"{name}.py" for name in ("agreement", "choosing", "compute", "loader", "modules", "runner"))
    return _digest([*(path for path in app.glob("tasks/**/*.py") if path.name != "dataset.py"), *engine])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines if line.startswith(("model name", "flags", "Features")))[:10_000]
