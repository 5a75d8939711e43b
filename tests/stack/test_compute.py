"""What computes is chosen beside the service, told, and kept for the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stack.conftest import Server, wait_for

pytest.importorskip("openvino")
SAMPLE = (ROOT / "models" / "digits" / "sample.png").read_bytes()


def compute(server: Server) -> dict[str, object]:
    found: dict[str, object] = server.model("digits")["meta"]["compute"]
    return found


def test_a_choice_is_made_beside_the_service_and_kept(tmp_path: Path):
    settings = {"HEARTH_MODELS": "digits", "HEARTH_COMPUTE": "openvino", "HEARTH_PRECISION": "fp32"}
    with Server(tmp_path, **settings) as server:
        assert compute(server)["engine"] == "eager", "nobody waits for a compiler"
        eager = server.predict(SAMPLE).json()["results"][0]["predictions"][0]
        wait_for(lambda: "why" in compute(server), 60)
        assert (compute(server)["engine"], compute(server)["precision"]) == ("openvino", "fp32")
        answer = server.predict(SAMPLE).json()["results"][0]["predictions"][0]
        assert answer["label"] == eager["label"]
        assert answer["score"] == pytest.approx(eager["score"], abs=1e-4)
    with Server(tmp_path, **settings) as again:
        assert compute(again)["engine"] == "openvino", "it begins with what the first one compiled"
        assert again.predict(SAMPLE).json()["results"][0]["predictions"][0]["label"] == eager["label"]
        again.http.post("/models/digits/unload")
        assert again.http.post("/models/digits/load").json()["state"] == "ready"
        assert compute(again)["engine"] == "openvino"
        for name, process in again.children().items():
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), f"{name} needs no torch, which is 500 MB"
