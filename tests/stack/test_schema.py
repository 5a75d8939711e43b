"""A server answers as its OpenAPI says, whatever it is asked: no 5xx, documented statuses and content types, bodies that fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app import keys
from app.settings import Settings
from app.web.server import make_app
from tests.stack.conftest import Server


def no_mistake_of_ours(_: Any, response: Any, case: Any) -> None:
    """A 5xx is right only where the caller's own deadline was too short, or a model is asked whether it is ready."""
    if case.operation.label == "GET /health/ready":
        return
    asked = [name for part in (case.query, case.body) if isinstance(part, dict) for name in part]
    assert response.status_code < 500 or (response.json()["code"] == "deadline" and "timeout_ms" in asked), response.text


CHECKS = [no_mistake_of_ours, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(make_app(cast(Any, None), Settings())._app.openapi())  # type: ignore[attr-defined]
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}
OPEN = {"GET /health/live", "GET /health/ready"}


def few(count: int) -> Any:
    """So many cases, the same in every run."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def test_the_whole_api_is_asked():
    assert len(OPERATIONS) > 20


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operation_keeps_its_word(server: Server, label: str, mode: GenerationMode):
    """Asked as its schema says, and otherwise."""
    cases = OPERATIONS[label].as_strategy(generation_mode=mode)

    @seed(1)
    @few(25 if mode == GenerationMode.POSITIVE else 15)
    @given(case=cases, known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "other"  # a model that there is; nobody else here asks it
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=120)

    try:
        ask()
    except Unsatisfiable:
        assert mode == GenerationMode.NEGATIVE
        pytest.skip("it takes nothing that could be wrong")


@pytest.fixture(scope="module")
def locked(toys: Path) -> Iterator[tuple[Server, list[dict[str, str]]]]:
    """A server with keys; and what its callers send: no key, one that may only ask, one that may ask once an hour."""
    file = toys / "keys.jsonl"
    made = [keys.add(file, "asks", "infer")[1], keys.add(file, "seldom", "infer", "1/h")[1]]
    with Server(toys, HEARTH_MODELS="toy", HEARTH_KEYS_FILE=str(file), HEARTH_FRONTENDS="1") as server:
        yield server, [{}, *({"authorization": f"Bearer {key}"} for key in made)]
    file.unlink()


def test_refusals_are_as_they_are_documented(locked: tuple[Server, list[dict[str, str]]]):
    server, callers = locked
    seen: set[int] = set()
    for label in OPERATIONS.keys() - OPEN:

        @seed(1)
        @few(1)
        @given(case=OPERATIONS[label].as_strategy())
        def ask(case: Any) -> None:
            for heads in (*callers, callers[-1]):
                answer = case.call_and_validate(base_url=server.url, headers=heads, checks=CHECKS[1:], timeout=120)
                seen.add(answer.status_code)
                assert heads or answer.status_code == 401

        ask()
    assert {401, 403, 429} <= seen
