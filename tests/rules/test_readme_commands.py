"""A command that the papers name exists: `make` targets, `hearth` commands and their options, files that they point to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import typer.main

from tests.rules import readme
from tests.rules.source import ROOT

PAPERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md")


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))


def spoken(markdown: str) -> list[str]:
    """Code: fenced blocks line by line, and spans in the text."""
    lines = [line.strip().removeprefix("$ ") for block in readme.code_blocks(markdown) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", prose)


def unknown_targets(markdown: str, known: set[str]) -> list[str]:
    return [
        f"make {word}"
        for code in spoken(markdown)
        for words in re.findall(r"(?:^|[;&|] *)make((?: +[a-z][a-z-]*)+)", code)
        for word in words.split()
        if word not in known
    ]


def unknown_commands(markdown: str, known: Mapping[str, set[str]]) -> list[str]:
    """`known`: command → its options."""
    found = []
    for code in spoken(markdown):
        for command, rest in re.findall(r"(?:^|[;&|(] *|bin/)hearth +([a-z]+)\b([^;&|]*)", code):
            if command not in known:
                found.append(f"hearth {command}")
            else:
                options = re.findall(r"(?:^|\s)(--[a-z][a-z-]*)", rest)
                found += [f"hearth {command} {option}" for option in options if option not in known[command] | {"--help"}]
    return found


@cache
def cli() -> dict[str, set[str]]:
    from app.cli import app

    group = typer.main.get_command(app)
    commands = getattr(group, "commands", None)
    assert commands, "hearth has no commands"
    return {name: options(command) for name, command in commands.items()}


def options(command: Any) -> set[str]:
    """Its own, and those of the commands below it (`hearth keys add`)."""
    below = [options(one) for one in getattr(command, "commands", {}).values()]
    return {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}.union(*below)


@pytest.mark.parametrize("paper", PAPERS)
def test_make_targets_exist(paper: str) -> None:
    known = targets((ROOT / "Makefile").read_text())
    assert {"serve", "test", "check", "bench", "image", "clean", "lock", "help"} <= known
    assert unknown_targets(readme.text(ROOT / paper), known) == []


@pytest.mark.parametrize("paper", PAPERS)
def test_hearth_commands_exist(paper: str) -> None:
    assert unknown_commands(readme.text(ROOT / paper), cli()) == []


def test_reproduce_lines_of_the_cards_exist() -> None:
    lines = [line for card in (ROOT / "models").glob("*/card.toml") for line in card.read_text().splitlines()]
    commands = [line.partition("=")[2].strip(' "') for line in lines if line.startswith("reproduce")]
    assert commands
    assert unknown_commands("".join(f"```\n{command}\n```\n" for command in commands), cli()) == []


def test_readme_names_the_two_commands() -> None:
    said = spoken(readme.text())
    assert any(line.startswith("make serve") for line in said)
    assert any(re.match(r"docker[ -]compose up", line) for line in said)


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert sorted(targets(makefile) - set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))) == []


def test_relative_links_lead_somewhere() -> None:
    for paper in PAPERS:
        links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", readme.text(ROOT / paper))
        assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    ("markdown", "said"),
    [
        ("run `make sandwich`", ["make sandwich"]),
        ("```\nmake check sandwich\n```", ["make sandwich"]),
        ("`make check` and then make peace", []),
    ],
)
def test_the_rule_sees_an_unknown_target(markdown: str, said: list[str]) -> None:
    assert unknown_targets(markdown, {"check"}) == said


@pytest.mark.parametrize(
    ("markdown", "said"),
    [
        ("`hearth fly`", ["hearth fly"]),
        ("```\n$ cd x && hearth serve --wings 2\n```", ["hearth serve --wings"]),
        ("```\n.venv/bin/hearth serve --port 1 --help\n```\nhearth burns", []),
    ],
)
def test_the_rule_sees_an_unknown_command(markdown: str, said: list[str]) -> None:
    assert unknown_commands(markdown, {"serve": {"--port"}}) == said
