"""What the server says of itself is so: readiness follows forwards that succeed, and a model that cannot start says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.stack.conftest import Server, picture, wait_for, write_toy

SICK = Path("/proc/self/mem")  # a regular file whose reading fails, for root too


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` raises while there is a file `broken`; the weights of `sick` cannot be read."""
    home = tmp_path_factory.mktemp("home")
    for name in ("toy", "other", "sick"):
        write_toy(home / "models" / name, "true" if name == "toy" else "false")
    module = home / "models" / "toy" / "model.py"
    broken = f"        if os.path.exists({str(home / 'broken')!r}):\n            raise RuntimeError('the device is gone')\n"
    module.write_text(module.read_text().replace("        flat =", f"{broken}        flat ="))
    card, weights = home / "models" / "sick" / "card.toml", home / "models" / "sick" / "weights.safetensors"
    card.write_text(card.read_text().replace('entry = "Toy"', f'entry = "Toy", sha256 = "{"0" * 64}"'))
    weights.unlink()
    weights.symlink_to(SICK)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with Server(home, HEARTH_MODELS="toy", HEARTH_FRONTENDS="1") as server:
        yield server


def ready(server: Server) -> httpx.Response:
    return server.http.get("/health/ready")


def test_answers_that_are_errors_prove_nothing(server: Server, home: Path):
    wait_for(lambda: ready(server).status_code == 200)

    def fails_and_is_ready() -> tuple[int, int]:
        return server.predict(picture(1, 2, 3)).status_code, ready(server).status_code

    (home / "broken").touch()
    try:
        wait_for(lambda: fails_and_is_ready() == (500, 503), 10)
        assert "raised RuntimeError" in ready(server).json()["models"]["toy"]
    finally:
        (home / "broken").unlink()
    wait_for(lambda: fails_and_is_ready() == (200, 200), 10)


def test_without_a_model_readiness_says_so_and_then_speaks_of_the_one_that_is_loaded(server: Server):
    server.http.post("/models/toy/unload")
    try:
        answer = wait_for(lambda: (said := ready(server)).status_code == 503 and said)
        assert answer.json()["models"] == {"hearth": "no model is loaded; POST /models/NAME/load loads one"}
        server.http.post("/models/other/load")
        assert wait_for(lambda: (said := ready(server)).status_code == 200 and said).json()["models"] == {"other": "ready"}
    finally:
        server.http.post("/models/other/unload")
        server.http.post("/models/toy/load")
    assert wait_for(lambda: (said := ready(server)).status_code == 200 and said).json()["models"] == {"toy": "ready"}


@pytest.mark.skipif(not SICK.exists(), reason="Linux's /proc")
def test_weights_that_cannot_be_read_fail_their_model_alone(server: Server):
    answer = server.http.post("/models/sick/load")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "weights.safetensors cannot be read" in answer.json()["detail"]
    assert server.model("sick")["state"] == "failed"
    assert server.predict(picture(1, 2, 3)).status_code == 200
    assert "a task of the supervisor ended" not in server.log
