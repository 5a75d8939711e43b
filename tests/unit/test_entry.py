"""How the command ends when nobody reads any more what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SAYING = "import app.__main__, app.cli; app.cli.main = lambda: print('a word'); app.__main__.main()"


def status(stdout: int) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-P", "-c", SAYING], env=environment, stdout=stdout, stderr=subprocess.DEVNULL
    ).returncode


def test_what_a_pipe_does_not_take_whose_reader_left_is_no_failure():
    """Python would end with 120: so did, now and then, a server whose terminal was closed while it still announced itself."""
    read, written = os.pipe()
    os.close(read)
    try:
        assert status(written) == 0
    finally:
        os.close(written)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_what_a_full_disk_does_not_take_is_one():
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert status(full) != 0
    finally:
        os.close(full)
