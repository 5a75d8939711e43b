"""A server answers as its OpenAPI says, whatever it is asked: no 5xx, documented statuses and content types, bodies that fit."""

from __future__ import annotations

from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.settings import Settings
from app.web.server import make_app
from tests.stack.conftest import Server


def no_mistake_of_ours(_: Any, response: Any, case: Any) -> None:
    """A 5xx is right only where the caller's own deadline was too short, or a model is asked whether it is ready."""
    if case.operation.label == "GET /health/ready":
        return
    asked = {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}
    assert response.status_code < 500 or (response.json()["code"] == "deadline" and "timeout_ms" in asked), response.text


CHECKS = [no_mistake_of_ours, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(make_app(cast(Any, None), Settings())._app.openapi())  # type: ignore[attr-defined]
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}


def test_the_whole_api_is_asked():
    assert len(OPERATIONS) > 20


@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operation_keeps_its_word(server: Server, label: str):
    @seed(1)
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "other"  # a model that there is; nobody else here asks it
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=120)

    ask()
