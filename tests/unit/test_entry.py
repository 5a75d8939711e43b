"""How the command ends when nobody reads any more what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SAYING = "import app.__main__, app.cli; app.cli.main = lambda: print('a word'); app.__main__.main()"


def status(stdout: int, unbuffered: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(
        [sys.executable, "-P", "-c", SAYING], env=environment, stdout=stdout, stderr=subprocess.DEVNULL
    ).returncode


def test_what_a_pipe_does_not_take_whose_reader_left_is_no_failure():
    """Python would end with 120: so did, now and then, a server whose terminal was closed while it still announced itself."""
    read, written = os.pipe()
    os.close(read)
    try:
        assert status(written, unbuffered="") == 0
    finally:
        os.close(written)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_full_disk_does_not_take_is_one(unbuffered: str):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert status(full, unbuffered) != 0
    finally:
        os.close(full)
