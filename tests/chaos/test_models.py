"""A model that does what no model may do costs the input that made it do so, and nobody else."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from callers import Callers, Line, Question

from tests.chaos.conftest import PROMISED, Chaos, questions
from tests.chaos.toys import CODES, LEVERS, STALL_S, poison, wrong
from tests.stack.conftest import Server, wait_for

BOUNDARY = "chaos"
HUNG_S = STALL_S + PROMISED["longest"]  # twice until it is noticed, and what a kill may cost


@pytest.mark.parametrize("lever", LEVERS)
def test_a_model_that(server: Server, callers: Callers, chaos: Chaos, lever: str):
    """What hangs among others is tried once more by itself: only so is it known which of the batch does. Its neighbours wait for
    both tries, so for two stall limits, each noticed by a look later at most: with limits as short as here, that is no more than is
    promised of one.
    """
    question, line, felt = wrong(lever), Line(server.url), []
    with ThreadPoolExecutor(1) as asking:
        for _ in range(chaos.times(1, 5)):
            asked, over, longest = asking.submit(line.ask, question), False, 0.0
            while not over:
                over, longest = asked.done(), max(longest, callers.felt(lambda: None))
            felt.append(longest)
            status, answer = asked.result()
            assert question.outcome(status, answer) == "right", answer
            callers.more(3)
    line.close()
    hangs = lever == "hangs"
    chaos.note(f"a model that {lever}: the others", callers.counts, felt, stall_s=HUNG_S if hangs else 0.0)
    assert not (hangs and chaos.long) or max(felt) <= HUNG_S, felt  # and so the median


def together(good: list[Question], bad: list[bytes], codes: list[str]) -> Question:
    """One request with pictures that are answered and such as have an error of their own."""
    raws = [question.body for question in good] + bad
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%d"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (BOUNDARY.encode(), number, raw)
        for number, raw in enumerate(raws)
    ]
    results = [question.known[0]["results"][0] for question in good] + [{"error": {"code": code}} for code in codes]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return Question("/predict/image", body, f"multipart/form-data; boundary={BOUNDARY}", [{"results": results}])


def test_inputs_that_kill_among_good_ones_in_one_batch(server: Server, chaos: Chaos):
    good = questions(server)[:6]
    assert all(len(json.dumps(question.known[0])) > 50 for question in good)
    bad = ["segfaults", "exits with 0"]
    question = together(good, [poison(lever) for lever in bad], [CODES[lever] for lever in bad])
    with Callers(server.url, [question], count=1) as callers:
        callers.more(chaos.times(1, 10), limit_s=120)
    chaos.note("an input that kills, among good ones", callers.counts)
    wait_for(lambda: "2 of 8 pull a lever" in server.log)


def test_the_check_sees_a_wrong_answer(server: Server):
    """A test of the tests: two questions whose right answers were exchanged."""
    one, other = questions(server)[:2]
    with Callers(server.url, [replace(one, known=other.known)], count=1) as callers:
        while not callers.counts.sent:
            callers._stop.wait(0.01)
    assert callers.counts.wrong == callers.counts.sent
