"""What an endpoint was given to send arrives, even if its process ends at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from app.wire.messages import Done
from app.wire.sockets import Endpoint, address, wait
from tests.conftest import ROOT

LAST_WORDS = """
import os, sys
import numpy as np
from app.wire.messages import Done
from app.wire.sockets import Endpoint, hand_over

endpoint = Endpoint.connect(sys.argv[1], "toy.1")
endpoint.send(Done(7, 0.0, 0.0, 1), {"scores": np.ones(4_000_000)})
endpoint.close()
hand_over()
os._exit(0)
"""
MUTE = """
import sys
from app.wire.messages import Done
from app.wire.sockets import Endpoint, hand_over

endpoint = Endpoint.connect(sys.argv[1], "toy.1")
endpoint.send(Done(7, 0.0, 0.0, 1))
endpoint.close()
hand_over()
"""


def run(program: str, where: str) -> None:
    subprocess.run([sys.executable, "-c", program, where], cwd=ROOT, check=True, timeout=60)


def test_the_last_words_of_a_process_arrive(tmp_path: Path):
    listener = Endpoint.listen(address(str(tmp_path), "here"))
    try:
        run(LAST_WORDS, address(str(tmp_path), "here"))
        wait([listener], 5)
        ((peer, message, arrays),) = listener.receive()
        assert (peer, message) == ("toy.1", Done(7, 0.0, 0.0, 1))
        assert arrays["scores"].sum() == 4_000_000
        assert isinstance(arrays["scores"], np.ndarray)
    finally:
        listener.close()


def test_a_process_whose_peer_is_gone_ends_all_the_same(tmp_path: Path):
    began = time.monotonic()
    run(MUTE, address(str(tmp_path), "nobody"))
    assert time.monotonic() - began < 10
