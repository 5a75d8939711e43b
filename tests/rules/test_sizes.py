"""A file is read in one sitting and a function on one screen."""

from __future__ import annotations

import ast

import pytest

from tests.rules.source import Source, sources

MAX_FILE = 300
MAX_FUNCTION = 60
MAX_PARAMETERS = 8


def too_long(source: Source) -> list[str]:
    found = []
    lines = len(source.text.splitlines())
    if lines > MAX_FILE:
        found.append(f"{source.path}: {lines} lines, at most {MAX_FILE}: which two things is it?")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{source.path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION}")
            # Options of a command are its documentation, not a parameter list that somebody calls.
            if len(node.args.args) > MAX_PARAMETERS and source.module != "app.cli":
                found.append(f"{source.path}:{node.lineno}: {node.name} takes {len(node.args.args)} positional parameters")
    return found


def silent(source: Source) -> list[str]:
    return [f"{source.path}: no first sentence"] if source.text.strip() and not ast.get_docstring(source.tree) else []


def test_files_and_functions_are_short() -> None:
    assert len(sources()) > 20, "the walk found hardly any source: is ROOT right?"
    assert [offence for source in sources() for offence in too_long(source)] == []


@pytest.mark.parametrize("folder", ["app", "tests", "benchmarks", "models"])
def test_every_module_says_what_it_is(folder: str) -> None:
    assert [offence for source in sources(folder) for offence in silent(source)] == []


def test_the_rule_sees_offenders() -> None:
    assert len(too_long(Source.of("x = 1\n" * (MAX_FILE + 1)))) == 1
    assert len(too_long(Source.of("def f():\n" + "    x = 1\n" * MAX_FUNCTION))) == 1
    assert len(too_long(Source.of("async def f(a, b, c, d, e, f, g, h, i): ..."))) == 1
    assert too_long(Source.of("x = 1\n" * MAX_FILE)) == []
    assert silent(Source.of("x = 1")) == ["app/offender.py: no first sentence"]
