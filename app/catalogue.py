"""`models/*/card.toml` → checked cards. The only reader of the folders of models."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from app.card import Card
from app.errors import Invalid, UnknownModel
from app.tasks import TASKS, resolve

_PACKED = Path(__file__).resolve().parent / "_models"


@dataclass(frozen=True)
class Catalogue:
    """Cards by name, and the cards that could not be read: folder → why."""

    cards: Mapping[str, Card]
    broken: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(cls, home: Path, shipped: Path | None = None) -> Catalogue:
        """The shipped cards and those in `<home>/models`; a card there hides a shipped one of the same name.

        Raises Invalid if a shipped card is wrong; a wrong one in `home` is listed in `broken` and harms no other.
        """
        cards = {folder.name: read_card(folder) for folder in _folders(shipped or shipped_models())}
        broken = {}
        for folder in _folders(home / "models"):
            try:
                cards[folder.name] = read_card(folder)
            except Invalid as error:
                broken[str(folder)] = error.detail
        return cls(MappingProxyType(dict(sorted(cards.items()))), MappingProxyType(broken))

    def named(self, name: str) -> Card:
        """The card `name`. Raises UnknownModel naming the known ones."""
        try:
            return self.cards[name]
        except KeyError:
            raise UnknownModel(f"no model is called {name!r}; there are: {', '.join(self.cards)}") from None

    def defaults(self, profile: str, at_hand: Callable[[Card], bool]) -> dict[str, str]:
        """Task → the model its endpoint uses. `at_hand` tells whether a card's weights are on this machine.

        `starter`: the starters. `pretrained`: the others, or the starter of a task that has no other. `auto`: the same where
        the weights are at hand, else the starter.
        """
        chosen: dict[str, str] = {}
        for task in TASKS:
            candidates = [card for card in self.cards.values() if card.default and card.task == task]
            starters = [card for card in candidates if card.starter]
            others = [card for card in candidates if not card.starter]
            if profile == "starter" or (profile == "auto" and not any(at_hand(card) for card in others)):
                others = []
            for card in (others or starters)[:1]:
                chosen[task] = card.name
        return chosen


def shipped_models() -> Path:
    """The project's own folder of models: beside `app` in a checkout, inside it in a wheel."""
    return _PACKED if is_packed() else _PACKED.parents[1] / "models"


def is_packed() -> bool:
    """Whether this is an installed wheel, whose folder of models is not ours to write to."""
    return _PACKED.is_dir()


def read_card(folder: Path) -> Card:
    """Read and check `folder/card.toml`. Raises Invalid with file, line, and what is allowed there."""
    path = folder / "card.toml"
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:  # the last: a thousand brackets
        raise Invalid(f"{path}: {error}") from error
    try:
        _, _, version = folder.name.partition("@")
        card = Card(**{"name": folder.name, "folder": folder, **values, **({"version": version} if version else {})})
    except ValidationError as error:
        raise Invalid(_explain(path, text, error, Card)) from error
    if card.task not in TASKS:
        raise Invalid(f"{path}:{_line(text, 'task')}: unknown task {card.task!r}; there are: {', '.join(TASKS)}")
    schema: type[BaseModel] = resolve(TASKS[card.task].input)
    try:
        schema(**card.input)
    except ValidationError as error:
        raise Invalid(_explain(path, text, error, schema, "input")) from error
    return card


def name_of(key: str) -> str:
    """`photos@2` → photos."""
    return key.partition("@")[0]


def number_of(key: str) -> int:
    """`photos@2` → 2. A model without versions is its own first one."""
    return int(key.partition("@")[2] or 1)


def versions_of(model: str, keys: Iterable[str]) -> list[str]:
    """The keys of this model."""
    return [key for key in keys if name_of(key) == model]


def _folders(parent: Path) -> Iterable[Path]:
    return sorted(path.parent for path in parent.glob("*/card.toml"))


def _explain(path: Path, text: str, error: ValidationError, schema: type[BaseModel], inside: str = "") -> str:
    """The first mistake: file, line, key, and the keys that are known there."""
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    key = location[-1]
    where = f"{path}:{_line(text, key)}: {'.'.join(filter(None, [inside, *location]))}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; known here: {', '.join(_known(schema, location[:-1]))}"
    return f"{where}: {first['msg']}"


def _known(schema: Any, location: list[str]) -> list[str]:
    """The field names of the model at `location`, walking through unions by the tag that pydantic puts into it."""
    properties = schema.model_json_schema()
    node: dict[str, Any] = properties
    for part in location:
        node = _follow(node.get("properties", {}).get(part, node), part, properties)
    return sorted(set(node.get("properties", {})) - {"name", "folder"})


def _follow(node: dict[str, Any], part: str, root: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref") or node.get("discriminator", {}).get("mapping", {}).get(part)
    if reference:
        found: dict[str, Any] = root["$defs"][reference.rpartition("/")[2]]
        return found
    return node


def _line(text: str, key: str) -> int:
    """The first line on which `key` is set; 1 if it is missing from the file."""
    pattern = re.compile(rf"(^|[\s,{{\[.\"]){re.escape(key)}[\"\]]?\s*(=|\]|$)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)), 1)
