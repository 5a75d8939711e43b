"""What lives in a worker: torch, no HTTP."""

import sys

# OpenVINO's companion of this name, where pip brought it along, starts a thread on import, which makes forks unsafe, and reports
# to its maker. OpenVINO does without it where it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
