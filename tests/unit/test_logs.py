"""A line of the log is one line, whatever callers put into it, and commands no terminal."""

from __future__ import annotations

import logging

import pytest

from app import logs

FORGED = "/x\n12:00:00 info     all is well\x1b[2K\x9b\u2028\u202e"


def said(kind: str, text: str, error: Exception | None = None) -> str:
    """By a handler of that kind, of `text` and an error."""
    formatter = logs._Json() if kind == "json" else logs._Text()
    raised = (type(error), error, error.__traceback__) if error else None
    return formatter.format(logging.LogRecord("hearth", logging.INFO, "", 0, "GET %s", (text,), raised))


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_a_caller_writes_begins_no_line_and_moves_no_cursor(kind: str):
    line = said(kind, FORGED)
    assert line.isprintable() and "all is well" in line


def test_an_error_keeps_its_lines_and_none_of_them_can_be_taken_for_an_event():
    lines = said("text", "/x", ValueError(FORGED)).split("\n")
    assert len(lines) > 2 and all(line.isprintable() for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_what_is_plain_stays_as_it_is():
    assert said("text", "/modèles/œuvre ’1’").endswith("info     GET /modèles/œuvre ’1’")
