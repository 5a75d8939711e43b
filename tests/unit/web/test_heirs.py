"""Which requests may be answered by two processes, one after the other."""

from __future__ import annotations

import pytest

from app.web.heirs import is_harmless


@pytest.mark.parametrize(
    "line",
    [
        *("GET /models", "HEAD /", "PUT /models/toy/traffic", "POST /predict/image?top_k=3", "POST /embed/text"),
        *("POST /transcribe", "POST /models/toy@2/load", "POST /models/toy/unload"),
    ],
)
def test_what_changes_nothing_more_the_second_time_is_asked_again(line: str):
    assert is_harmless(f"{line} HTTP/1.1\r\nhost: x\r\n\r\nbody".encode())


@pytest.mark.parametrize(
    "line",
    [
        *("POST /finetune", "POST /finetune/1/cancel", "POST /finetune/1/resume", "DELETE /finetune/1"),
        *("POST /models/toy/rollback", "POST /models/toy/%72ollback", "POST /models/load/rollback", "nonsense"),
        *("POST http://x/finetune", "POST //finetune"),
    ],
)
def test_the_others_are_not(line: str):
    assert not is_harmless(f"{line} HTTP/1.1\r\nhost: x\r\n\r\nbody".encode())


@pytest.mark.parametrize("begun", [b"", b"P", b"POST /finetune HTTP/1.1\r\nhost: x\r\n"])
def test_a_header_that_is_half_here_has_done_nothing_yet(begun: bytes):
    assert is_harmless(begun)
