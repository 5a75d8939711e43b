"""One server, all modalities: right answers, models that come and go, processes that are what they say."""

from __future__ import annotations

import io
import os
import socket
import threading
import wave as wave_module
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.stack.conftest import Server, picture, saved, wait_for, wave, write_toy


def maps(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def test_supervisor_and_frontends_never_load_torch(server: Server):
    children = server.children()
    frontends = [child for name, child in children.items() if "http" in name]
    assert frontends
    for process in (*frontends, psutil.Process(server.process.pid)):
        assert "libtorch" not in maps(process), process
    assert "libtorch" in maps(children["hearth nursery"])


def test_the_nursery_opens_no_cuda_device(server: Server):
    nursery = server.children()["hearth nursery"]
    opened = [str(link.readlink()) for link in Path(f"/proc/{nursery.pid}/fd").iterdir() if link.exists()]
    assert not [path for path in opened if "nvidia" in path]
    assert nursery.num_threads() == 1


def test_all_four_endpoints_answer(server: Server):
    body = server.predict(picture(200, 100, 50), top_k=3).json()
    assert body["model"] == "toy"
    scores = [p["score"] for p in body["results"][0]["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    vector = server.http.post("/embed/image", content=picture(9, 9, 9)).json()["embeddings"][0]
    assert len(vector) == 192
    assert abs(np.linalg.norm(vector) - 1) < 1e-5
    body = server.http.post("/embed/text", json={"inputs": ["a cat", "a kitten", "tax law"]}).json()
    cat, kitten, tax = np.array(body["embeddings"])
    assert cat @ kitten > 0.7 > 0.3 > cat @ tax
    body = server.http.post("/transcribe?model=toy-speech&words=true", content=wave(1.0)).json()
    assert body["results"][0]["duration_s"] == 1.0
    assert " ".join(word["word"] for word in body["results"][0]["words"]) == " ".join(body["results"][0]["text"].split())


def test_a_long_recording_is_cut_and_stitched(server: Server):
    answer = server.http.post("/transcribe?model=toy-speech", content=wave(15.0))
    assert answer.json()["results"][0]["duration_s"] == 15.0
    assert server.http.get("/health/ready").status_code == 200


def test_every_caller_gets_its_own_answer_whatever_runs_beside_it(server: Server):
    texts = [f"{n} " + "word " * (n * 7 % 60) for n in range(60)]
    alone = [server.http.post("/embed/text", json={"inputs": text}).json()["embeddings"][0] for text in texts]
    with ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(lambda text: server.http.post("/embed/text", json={"inputs": text}).json()["embeddings"][0], texts)
        )
    assert np.abs(np.array(alone) - np.array(together)).max() < 1e-5
    (batched,) = [server.http.post("/embed/text", json={"inputs": texts}).json()["embeddings"]]
    assert np.abs(np.array(alone) - np.array(batched)).max() < 1e-5


def test_unload_ends_the_process_and_load_brings_it_back(server: Server):
    for _ in range(2):
        loaded = server.http.post("/models/other/load").json()
        assert loaded["state"] == "ready"
        pid = loaded["workers"][0]["pid"]
        assert psutil.Process(pid).name().startswith("hearth other")
        assert server.predict(picture(1, 2, 3), model="other").status_code == 200
        assert server.http.post("/models/other/unload").json()["state"] == "unloaded"
        wait_for(lambda pid=pid: not psutil.pid_exists(pid))
        answer = server.predict(picture(1, 2, 3), model="other")
        assert (answer.status_code, answer.json()["code"]) == (503, "loading")
        assert "POST /models/other/load" in answer.json()["detail"]


def test_what_is_still_being_read_when_its_model_is_unloaded_is_answered(server: Server):
    """The workers were told to end at once, and what came to them a moment later had 503."""
    assert server.http.post("/models/other/load").json()["state"] == "ready"
    large = saved(Image.new("RGB", (5000, 5000)))  # a tenth of a second each
    files = [("file", ("large.png", large, "image/png"))] * 24
    before = server.metric('hearth_batch_size_count{model="other"}')
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{server.url}/predict/image?model=other", files=files, timeout=60)
        wait_for(lambda: server.metric('hearth_batch_size_count{model="other"}') > before)  # the first is read
        assert not asked.done()
        assert server.http.post("/models/other/unload").json()["state"] == "unloaded"
        answer = asked.result()
    assert answer.status_code == 200, answer.text
    assert not [result["error"] for result in answer.json()["results"] if "error" in result]
    assert not [name for name in server.children() if name.startswith("hearth other")]


def test_what_is_still_being_read_when_its_model_is_loaded_by_another_card_is_answered_by_that(tmp_path: Path):
    """It was read as the old card says, and computed by the workers of the new one: an answer that neither of them gives."""
    write_toy(tmp_path / "models" / "toy", "true")
    card = tmp_path / "models" / "toy" / "card.toml"
    large = saved(Image.new("RGB", (5000, 5000), (30, 60, 90)))  # a tenth of a second each
    files = [("file", ("large.png", large, "image/png"))] * 24
    slowly = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]  # with two decoders, however many cores there are
    with Server(tmp_path, under=slowly, HEARTH_MODELS="toy") as server, ThreadPoolExecutor(1) as pool:
        before = server.predict(large).json()["results"][0]["predictions"]
        ran = wait_for(lambda: server.metric('hearth_batch_size_count{model="toy"}'))  # it is counted after it is answered
        asked = pool.submit(httpx.post, f"{server.url}/predict/image", files=files, timeout=60)
        wait_for(lambda: server.metric('hearth_batch_size_count{model="toy"}') > ran)  # the first is read
        card.write_text(card.read_text().replace("mean = [0, 0, 0]", "mean = [0.9, 0.1, 0.5]"))
        server.hang_up()
        with ThreadPoolExecutor(1) as leaving:
            left = leaving.submit(server.http.post, "/models/toy/unload")
            wait_for(lambda: server.model("toy")["state"] == "unloaded")
            assert not asked.done()
            assert httpx.post(f"{server.url}/models/toy/load", timeout=60).json()["state"] == "ready"
            left.result()
        answer = asked.result()
        assert answer.status_code == 200, answer.text
        after = server.predict(large).json()["results"][0]["predictions"]
        assert before != after
        assert [result["predictions"] for result in answer.json()["results"]] == [after] * 24


def test_loading_twice_is_loading_once(server: Server):
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _: server.http.post("/models/other/load").json(), range(4)))
    assert {state["state"] for state in states} == {"ready"}
    assert len({state["workers"][0]["pid"] for state in states}) == 1
    server.http.post("/models/other/unload")


def test_weights_that_do_not_fit_are_told(server: Server):
    answer = server.http.post("/models/misfit/load")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "does not fit" in answer.json()["detail"]
    assert server.model("misfit")["state"] == "failed"
    assert server.http.get("/health/ready").status_code == 200, "only preloaded models count"


def test_a_model_of_another_task_is_refused_with_the_right_ones(server: Server):
    answer = server.predict(picture(1, 2, 3), model="all-minilm-l6-v2")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "toy" in answer.json()["detail"]


def test_metrics_tell_of_all_processes(server: Server):
    text = server.http.get("/metrics").text
    for name in (
        "requests_total",
        "stage_seconds_bucket",
        "queue_depth",
        "queue_seconds_sum",
        "batch_size_count",
        "batch_cost_sum",
    ):
        assert f"hearth_{name}" in text
    assert server.metric('hearth_worker_memory_bytes{model="toy",') > 50e6, "a process with torch"


def test_an_error_is_counted_by_its_code(server: Server):
    def count() -> float:
        return server.metric('hearth_errors_total{code="unknown_model",endpoint="/predict/image"}')

    before = count()
    assert server.predict(picture(1, 2, 3), model="nobody").status_code == 404
    wait_for(lambda: count() == before + 1)


def test_the_welcome_names_models_and_examples(server: Server):
    assert "/predict/image" in server.log
    assert "/embed/text" in server.log
    assert any("toy" in line and "ready" in line for line in server.said)


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_any_rate_is_heard(server: Server, rate: int):
    out = io.BytesIO()
    with wave_module.open(out, "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes((np.random.default_rng(0).normal(0, 3000, 2 * rate)).astype("<i2").tobytes())
    body = server.http.post("/transcribe?model=toy-speech", content=out.getvalue()).json()
    assert abs(body["results"][0]["duration_s"] - 1.0) < 0.01


def test_a_client_that_leaves_costs_no_device_time(server: Server):
    """Its sample waits behind a slow one and is dropped there: it would have killed the worker."""
    slow = threading.Thread(target=lambda: server.predict(picture(0, 255, 255)))
    worker = server.worker()
    slow.start()
    wait_for(lambda: "hearth_requests_in_flight 2.0" in server.http.get("/metrics").text)
    host, port = server.url.removeprefix("http://").split(":")
    body = picture(255, 0, 255)
    with socket.create_connection((host, int(port))) as leaving:
        head = f"POST /predict/image HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving.sendall(head.encode() + body)
        wait_for(lambda: "hearth_requests_in_flight 3.0" in server.http.get("/metrics").text)
    slow.join()
    wait_for(lambda: "hearth_requests_in_flight 1.0" in server.http.get("/metrics").text)
    assert server.predict(picture(1, 2, 3)).status_code == 200
    assert server.worker() == worker
