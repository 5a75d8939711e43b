"""Files that take for ever: each ends with its deadline, or with what a file may take of the processor, and others get in."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil

from app.decoding.client import decoder_count
from app.settings import cores
from tests.stack import hostile
from tests.stack.conftest import Server, wait_for
from tests.stack.test_hostile import IMAGE, clear, ours, send

RAW = hostile.many_scans()


def busy(server: Server) -> list[psutil.Process]:
    """Decoders that have worked for a while."""
    found = []
    for decoder in ours(server, "hearth decode "):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [decoder] * (sum(decoder.cpu_times()[:2]) > 1)
    return found


def test_a_picture_that_takes_for_ever_ends_with_its_deadline_and_its_decoder_with_it(server: Server):
    started = time.monotonic()
    before = {decoder.pid for decoder in ours(server, "hearth decode ")}
    answers = [send(server, f"{IMAGE}&timeout_ms=1000", RAW) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [504] * 3
    assert time.monotonic() - started < 60
    wait_for(lambda: not before & {decoder.pid for decoder in ours(server, "hearth decode ")})


def test_who_would_wait_for_an_hour_keeps_nobody_out_for_longer_than_a_file_may_take(server: Server):
    """As many of them as there are decoders."""
    frontends = len(ours(server, "hearth decoders"))
    count = frontends * decoder_count(cores(), frontends)
    with ThreadPoolExecutor(count) as threads:
        url = f"{server.url}{IMAGE}&timeout_ms=3600000"
        slow = [threads.submit(httpx.post, url, content=RAW, timeout=300) for _ in range(count)]
        wait_for(lambda: len(busy(server)) == count or any(one.done() for one in slow), 60)
        answer = httpx.post(f"{server.url}{IMAGE}&timeout_ms=120000", content=hostile.small("PNG"), timeout=120)
        assert answer.status_code == 200, answer.text
        assert {clear(one.result()) for one in slow} == {"bad_input"}
