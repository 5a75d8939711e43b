"""OpenVINO reports to nobody from our processes, and starts no thread before the nursery forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

TELEMETRY = """import threading
class Telemetry:
    def __init__(self, *_, **__): threading.Thread(target=threading.Event().wait, daemon=True).start()
    def __getattr__(self, name): return lambda *_, **__: None
"""


def test_its_companion_is_not_imported_where_pip_brought_it(tmp_path: Path):
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text(TELEMETRY)
    code = "import app.engine, openvino, threading, sys; print(threading.active_count(), sys.modules['openvino_telemetry'])"
    told = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.split() == ["1", "None"], told.stderr
