"""More is asked than there is room for, and frontends die meanwhile: everybody is answered right, or told to come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import faults
from callers import Callers, Question, asked

from tests.chaos.conftest import Chaos, refusable
from tests.stack.conftest import TEXT_CARD, WORDS, Server, wait_for, write_text

CALLERS, PATH = 12, "/embed/text"


def _questions(server: Server) -> Sequence[Question]:
    bodies = [json.dumps({"inputs": f"{one} {other}"}).encode() for one, other in pairwise(WORDS[:13])]
    found = [asked(server.url, PATH, body, "application/json") for body in bodies]
    return refusable(found, "too_busy")


def _refused_at_a_glance(server: Server) -> bool:
    """On the usual way it would be told that a body of this kind is not read here."""
    answer = server.http.post(PATH, content=b'{"inputs": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code in (415, 503)
    return answer.status_code == 503


def test_a_flood_while_frontends_are_killed(tmp_path: Path, chaos: Chaos):
    folder = tmp_path / "models" / "toy-text"
    write_text(folder)
    (folder / "card.toml").write_text(TEXT_CARD.replace("max_queue = 256", "max_queue = 2"))
    with Server(tmp_path, HEARTH_MODELS="toy-text", HEARTH_FRONTENDS="2") as server:
        with Callers(server.url, _questions(server), CALLERS) as callers:
            for _ in range(chaos.times(3, 30)):
                faults.kill(server.process.pid, "http")
                both = callers.counts.right + 20, callers.counts.failed + 20
                wait_for(lambda both=both: callers.counts.right > both[0] and callers.counts.failed > both[1], 60)
            wait_for(lambda: _refused_at_a_glance(server), 60)
        refused = server.metric(f'hearth_errors_total{{code="too_busy",endpoint="{PATH}"')
    counts = callers.counts
    chaos.figure("a flood, frontends killed", **counts.figures())
    assert not counts.wrong and not counts.lost, counts
    assert refused > 0
