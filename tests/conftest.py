"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Before anything imports app.metrics: prometheus_client decides at import whether several processes write together.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="hearth-test-metrics-"))
for name in [name for name in os.environ if name.startswith("HEARTH_")]:
    del os.environ[name]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED
