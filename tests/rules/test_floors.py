"""An import goes down or stays inside its own package. This file is the architecture diagram that cannot go stale."""

from __future__ import annotations

import pytest

from tests.rules.source import Source, module_of, sources

# The longest matching prefix counts. A module that stands here alone is a floor of its own inside `app`.
FLOORS = {
    "app.__main__": 9,
    "app.cli": 8,
    "app.main": 7,
    "app.jobs": 7,  # what `hearth jobs` shows
    "app.welcome": 7,  # what `hearth serve` prints once it stands
    "app.web": 6,
    "app.pool": 5,
    "app.tuning": 5,
    "app.engine": 4,
    "app.decoding": 3,
    "app.catalogue": 3,
    "app.weights": 3,
    "app.download": 3,  # what weights.py fetches with
    "app.pull": 3,
    "app.tasks": 2,
    "app.wire": 1,
    "app.card": 0,
    "app.settings": 0,
    "app.errors": 0,
    "app.keys": 0,
    "app.rates": 0,
    "app.audit": 0,
    "app.metrics": 0,
    "app.logs": 0,
    "app.listing": 0,
    "app.process": 0,  # what every child process does first
    "app.patience": 0,  # waiting for descriptors
    "app.private": 0,  # the folder of sockets
    "app": 0,  # the package itself: docstring and version
}


def offences(all_sources: tuple[Source, ...]) -> list[str]:
    """Imports that go up, or sideways into another package. Typing-only ones count: they are knowledge too."""
    modules = {source.module for source in all_sources}
    found = []
    for source in all_sources:
        here = home(source.module)
        for one in source.imports():
            target = module_of(one.name, modules)
            if one.name.startswith("."):
                found.append(f"{source.path}:{one.line}: relative import {one.name}; write it from `app` down")
            if target is None or home(target) == here:
                continue
            up = FLOORS[home(target)] - FLOORS[here]
            # Single files of one floor lie in the same package, `app`: they may use each other, never in a circle.
            beside = up == 0 and is_file(source.module) and is_file(target)
            if up >= 0 and not beside:
                way = "up" if up else "sideways"
                floors = f"floor {FLOORS[here]} imports {way} {target} (floor {FLOORS[home(target)]})"
                found.append(f"{source.path}:{one.line}: {floors}")
    return found


def home(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    found = module_of(module, set(FLOORS))
    if found is None or (found == "app" and module != "app"):
        pytest.fail(f"{module} has no floor: add it to FLOORS in {__name__} and to the map in app/__init__.py")
    return found


def is_file(module: str) -> bool:
    return module in FLOORS and module.count(".") == 1 and not any(s.module.startswith(module + ".") for s in sources())


def circles(all_sources: tuple[Source, ...]) -> list[list[str]]:
    """Chains of load-time imports that come back to where they started."""
    modules = {source.module for source in all_sources}
    edges = {
        source.module: sorted(
            {
                target
                for one in source.imports()
                if not one.lazy and not one.typing_only and (target := module_of(one.name, modules))
            }
            - {source.module}
            # Importing `app.x.y` runs `app/x/__init__.py`, which is not knowledge of it.
            - {source.module.rpartition(".")[0]}
        )
        for source in all_sources
    }
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in edges[module]:
                walk(target, [*path, module])
            done.add(module)

    for module in edges:
        walk(module, [])
    return found


def test_imports_go_down_or_stay_inside_their_package() -> None:
    assert len(sources()) > 20, "the walk found hardly any source: is ROOT right?"
    assert offences(sources()) == []


def test_every_module_has_a_floor() -> None:
    for source in sources():
        home(source.module)


def test_no_load_time_circle() -> None:
    assert circles(sources()) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("app.wire.frames", "import app.tasks.base"),
        ("app.errors", "from app.web import problems"),
        ("app.pool.client", "from app.tuning import trainer"),
        ("app.pool.client", "def late():\n    from app.web.problems import problem"),
        ("app.engine.runner", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.pool import client"),
        ("app.wire.frames", "from . import messages"),
    ],
)
def test_the_rule_sees_an_offender(module: str, text: str) -> None:
    others = tuple(source for source in sources() if source.module != module)
    assert len(offences((*others, Source.of(text, module)))) == 1


def test_the_rule_sees_a_circle() -> None:
    pair = (Source.of("import app.web.b", "app.web.a"), Source.of("from app.web.a import x", "app.web.b"))
    assert circles(pair) == [["app.web.a", "app.web.b", "app.web.a"]]


def test_an_import_downwards_is_no_offence() -> None:
    others = tuple(source for source in sources() if source.module != "app.web.new")
    assert offences((*others, Source.of("from app.pool.base import Pool", "app.web.new"))) == offences(others)
