"""Jobs over HTTP: from an archive to a model that answers, whatever is killed in between."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.stack.conftest import Server, picture, wait_for, wave_of, write_toys

SETTINGS = {"HEARTH_MODELS": "toy", "HEARTH_CHECKPOINT_S": "0.1", "HEARTH_THREADS": "1", "HEARTH_TUNER_SHARE": "1"}
QUICK = {"base": "toy", "epochs": 12, "batch_size": 8, "augment": False, "learning_rate": 0.1}


def shades(count: int = 24) -> bytes:
    """Dark pictures and bright ones, all different."""
    random, out = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for label, low in (("dark", 0), ("bright", 150)):
            for number in range(count):
                raw = io.BytesIO()
                Image.fromarray(random.integers(low, low + 100, (8, 8, 3), np.uint8)).save(raw, "PNG")
                archive.writestr(f"shades/{label}/{number}.png", raw.getvalue())
    return out.getvalue()


def submit(server: Server, name: str, data: bytes | None = None, **spec: Any) -> httpx.Response:
    parts = {"spec": (None, json.dumps(QUICK | {"name": name} | spec)), "dataset": ("d.zip", shades() if data is None else data)}
    return server.http.post("/finetune", files=parts)


def job(server: Server, id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get(f"/finetune/{id}").json()
    return found


def ended(server: Server, id: str, seconds: float = 90) -> dict[str, Any]:
    wait_for(lambda: job(server, id)["state"] in ("succeeded", "failed", "cancelled"), seconds)
    return job(server, id)


def tuners(server: Server) -> dict[str, psutil.Process]:
    return {name: process for name, process in server.children().items() if name.startswith("hearth tune")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    write_toys(home)
    with Server(home, **SETTINGS) as server:
        yield server


def test_from_an_archive_to_a_model_that_answers(server: Server):
    answer = submit(server, "shades")
    assert answer.status_code == 202, answer.text
    id = answer.json()["id"]
    assert answer.headers["location"] == f"/finetune/{id}"
    told: list[tuple[str, dict[str, Any]]] = []
    with server.http.stream("GET", f"/finetune/{id}/events", timeout=90) as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.append((kind, json.loads(line.removeprefix("data: "))))
    assert [data["stage"] for kind, data in told if kind == "stage"] == ["preparing", "training"]
    states = [data["state"] for kind, data in told if kind == "state"]
    assert states == ["validating", "queued", "running", "succeeded"], server.http.get(f"/finetune/{id}/log").text
    assert [data["epoch"] for _, data in told if data.get("metrics")] == list(range(1, 13))
    done = job(server, id)
    assert done["result"]["metrics"]["accuracy"] == 1.0
    assert done["report"]["train"] == {"bright": 19, "dark": 19} and done["report"]["val"] == {"bright": 5, "dark": 5}
    assert done["spec"]["seed"] == 0 and done["spec"]["optimizer"] == "sgd" and done["result"]["versions"]["torch"]
    assert {"hearth", "python", "accelerate", "transformers"} < set(done["result"]["versions"])
    best = done["progress"]["best"]
    assert best["metrics"] == done["result"]["metrics"] and best == done["result"]["best"] and best["step"] == 4 * best["epoch"]
    assert done["progress"]["device"] == done["result"]["device"] and done["progress"]["device_name"]
    assert done["progress"]["memory_bytes"] > 1 << 20 and done["progress"]["seconds_left"] == 0
    wait_for(lambda: server.http.get("/models/shades").json().get("state") == "ready", 20)
    best = server.predict(picture(240, 240, 240), model="shades").json()["results"][0]["predictions"][0]
    assert best["label"] == "bright"
    assert server.predict(picture(9, 9, 9), model="shades").json()["results"][0]["predictions"][0]["label"] == "dark"
    assert "going on" not in server.http.get(f"/finetune/{id}/log").text
    numbers = server.http.get(f"/finetune/{id}/events", headers={"Last-Event-ID": "3"}).text
    assert "validating" not in numbers and "succeeded" in numbers
    assert server.http.delete(f"/finetune/{id}").status_code == 204
    assert server.http.get(f"/finetune/{id}").json()["code"] == "unknown_job"
    assert server.predict(picture(9, 9, 9), model="shades").status_code == 200


def test_only_the_head_learns(server: Server):
    id = submit(server, "head-only", method="head", epochs=60, learning_rate=0.02).json()["id"]
    assert ended(server, id)["result"]["metrics"]["accuracy"] == 1.0


def test_what_a_picture_model_cannot_be_tuned_by_is_told_with_the_remedy(server: Server):
    failed = ended(server, submit(server, "all-head", method="lora").json()["id"])
    assert failed["state"] == "failed" and failed["reason"].endswith(
        "that it calls and that stands in one place; use head or full"
    )


def test_a_foreman_that_is_stopped_is_replaced(server: Server):
    ended(server, submit(server, "before", epochs=1).json()["id"])
    server.children()["hearth foreman"].suspend()
    assert ended(server, submit(server, "after", epochs=1).json()["id"])["state"] == "succeeded"


def test_a_metric_that_nobody_measures_fails_with_those_that_are(server: Server):
    failed = ended(server, submit(server, "unmeasured", metric="f1").json()["id"])
    assert failed["state"] == "failed" and "not measured by 'f1'; it is by: accuracy, loss, macro_f1" in failed["reason"]


def spoken(count: int = 12) -> bytes:
    """A long tone is A, five short ones are B; in a folder of its own, as many systems pack it."""
    out, time_s = io.BytesIO(), np.arange(8000) / 16000
    with zipfile.ZipFile(out, "w") as archive:
        rows = ["file,transcript"]
        for number in range(2 * count):
            rows.append(f"{number}.wav,{'ab'[number % 2]}")
            tone = 0.3 * np.sin(2 * np.pi * (300 + 10 * number) * time_s)
            archive.writestr(f"tones/{number}.wav", wave_of(tone * (time_s % 0.1 < 0.03) if number % 2 else tone))
        archive.writestr("tones/transcripts.csv", "\n".join(rows))
    return out.getvalue()


# A fresh network says nothing but blanks for its first 100 steps; the other two begin with random weights that they mostly keep.
LEARNT = {"start": "fresh", "epochs": 200, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 50}


PART = {"epochs": 20, "learning_rate": 0.01, "keep": "last"}


def losses(server: Server, id: str) -> list[float]:
    told = [json.loads(line[6:]) for line in server.http.get(f"/finetune/{id}/events").text.splitlines() if line[:5] == "data:"]
    return [data["loss"] for data in told if "loss" in data]


def changed(home: Path, base: str, version: str) -> set[str]:
    """The weights that are others than the base model's."""
    before, after = (load_file(home / "models" / key / "model.safetensors") for key in (base, version))
    return {name for name in before.keys() | after.keys() if not np.array_equal(before.get(name), after.get(name))}


@pytest.mark.parametrize("how", [LEARNT | {"augment": False, "ema": 0.0}, PART | {"method": "head"}, PART | {"method": "lora"}])
def test_recordings_become_a_model_that_transcribes(server: Server, how: dict[str, Any]):
    name = f"tones-{how.get('method', 'fresh')}"
    spec = {"base": "toy-speech", "batch_size": 4, "augment": None} | how
    done = ended(server, (id := submit(server, name, spoken(), **spec).json()["id"]))
    assert done["state"] == "succeeded", done["reason"]
    assert done["report"]["train"]["recordings"] == 19 and done["report"]["val"]["words"] == 5
    assert set(done["result"]["metrics"]) == {"word_error_rate", "character_error_rate"} and done["spec"]["optimizer"] == "adamw"
    if "start" in how:
        assert done["result"]["metrics"]["word_error_rate"] < 0.5
    else:
        first, *_, last = losses(server, id)
        learnt = changed(server.home, "toy-speech", f"{name}@1")
        assert last < first / 4 and {"lm_head.weight", "lm_head.bias"} <= learnt
        deeper = {weight for weight in learnt if weight.startswith("wav2vec2.encoder.layers.")}
        assert len(learnt) == len(deeper) + 2 and bool(deeper) == (how["method"] == "lora")
    wait_for(lambda: server.http.get(f"/models/{name}").json().get("state") == "ready", 20)
    (sample,) = (server.home / "models" / f"{name}@1").glob("sample.*")
    answer = server.http.post("/transcribe", params={"model": name}, content=sample.read_bytes()).json()
    expected = json.loads((sample.parent / "expected.json").read_text())
    assert answer["results"][0]["text"] == expected["text"] and answer["results"][0]["duration_s"] == 0.5


def test_idx_files_become_a_model(server: Server):
    random, out = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part, count in (("train", 160), ("t10k", 40)):
            targets = random.integers(0, 2, count, np.uint8)
            pictures = random.integers(0, 100, (count, 8, 8), np.uint8) + 120 * targets[:, None, None]
            for what, values in (("images-idx3", pictures), ("labels-idx1", targets)):
                head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
                archive.writestr(f"mnist/{part}-{what}-ubyte.gz", gzip.compress(head + values.tobytes()))
    done = ended(server, submit(server, "squares", out.getvalue(), start="fresh", augment=None).json()["id"])
    assert done["state"] == "succeeded" and done["result"]["metrics"]["accuracy"] == 1.0, done["reason"]
    wait_for(lambda: server.http.get("/models/squares").json().get("state") == "ready", 20)
    best = server.predict(picture(240, 240, 240), model="squares").json()["results"][0]["predictions"][0]
    assert best["label"] == "1"


def test_what_is_wrong_with_the_data_is_told_at_once(server: Server):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/1.png", picture(1, 2, 3))
        archive.writestr("a/2.png", b"no picture")
        archive.writestr("b/1.png", picture(3, 2, 1))
        archive.writestr("stray.png", picture(0, 0, 0))
    failed = ended(server, submit(server, "wrong", out.getvalue()).json()["id"])
    assert failed["state"] == "failed" and "and" in failed["reason"]
    assert {"stray.png", "b", "a/2.png"} <= {problem["where"] for problem in failed["report"]["problems"]}


@pytest.mark.parametrize(
    ("spec", "data", "status", "words"),
    [
        ({"base": "nobody"}, None, 422, "no model is called 'nobody'"),
        ({"base": "resnet18", "start": "fresh"}, None, 422, "no network of its own"),
        ({"keep": "last", "patience": 2}, None, 422, "leave one out"),
        ({"epochs": 0}, None, 422, "spec: epochs"),
        ({"epoch": 3}, None, 422, "unknown field 'epoch'"),
        ({"name": "toy-speech"}, None, 409, "is a model for speech-recognition already"),
        ({"schedule": "step"}, None, 422, "'cosine' or 'linear'"),
        ({"accumulate": 0}, None, 422, "spec: accumulate"),
        ({"name": "../up"}, None, 422, "spec: name"),
        ({}, b"", 400, "is empty"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, spec: dict[str, Any], data: bytes | None, status: int, words: str):
    answer = submit(server, **({"name": "refused", "data": data} | spec))
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


def test_parts_that_are_missing_are_named(server: Server):
    assert (
        "the part 'dataset' is missing"
        in server.http.post("/finetune", files={"spec": (None, '{"name": "x", "base": "toy"}')}).text
    )
    assert "the part 'spec' is missing" in server.http.post("/finetune", files={"dataset": ("x", b"x")}).text
    assert server.http.post("/finetune", json={}).status_code == 400
    assert server.http.get("/finetune/nope/events").json()["code"] == "unknown_job"


def test_a_second_job_is_a_second_version_and_one_call_undoes_it(server: Server):
    """It goes live by itself with the share that its owner wanted; all is answered meanwhile, by versions that say so."""
    first = submit(server, "twice").json()["id"]
    assert ended(server, first)["result"]["version"] == 1
    wait_for(lambda: server.http.get("/models/twice").json().get("state") == "ready", 20)
    second = submit(server, "twice", base="twice", seed=5, traffic=0.5).json()
    assert second["spec"]["base"] == "twice@1"
    ask = lambda: server.predict(picture(240, 240, 240), model="twice").json()  # noqa: E731

    def over() -> bool:
        done = job(server, second["id"])["state"] in ("succeeded", "failed")
        assert done or ask()["version"] == "1"
        return done

    wait_for(over, 100)
    told = wait_for(lambda: [v["share"] for v in server.http.get("/models/twice").json()["versions"]] == [0.5, 0.5], 30)
    assert told and {ask()["version"] for _ in range(60)} == {"1", "2"}
    back = server.http.post("/models/twice/rollback").json()
    assert [(v["version"], v["share"]) for v in back["versions"]] == [("1", 1.0), ("2", 0.0)]
    assert {ask()["version"] for _ in range(20)} == {"1"}


def test_cancel_answers_at_once_and_resume_goes_on(server: Server):
    id = submit(server, "long", epochs=10_000).json()["id"]
    wait_for(lambda: job(server, id)["progress"].get("step", 0) > 20, 60)
    asked = time.monotonic()
    assert server.http.post(f"/finetune/{id}/cancel").json()["state"] == "cancelled"
    assert time.monotonic() - asked < 1, "nobody is waited for"
    stopped_at = job(server, id)["progress"]["step"]
    # The foreman looks four times a second, and ends the process in the middle of a step; the rest of 5 s is for slow machines.
    wait_for(lambda: not tuners(server), 5)
    assert job(server, id)["progress"]["step"] == stopped_at, "what it did until then counts no more"
    assert server.http.post(f"/finetune/{id}/cancel").status_code == 409
    reached = job(server, id)["progress"]["step"]
    assert server.http.post(f"/finetune/{id}/resume").json()["state"] == "validating"
    wait_for(lambda: job(server, id)["progress"]["step"] > reached, 60)
    assert "going on from step" in server.http.get(f"/finetune/{id}/log").text
    server.http.post(f"/finetune/{id}/cancel")


def weights(home: Path, name: str) -> str:
    return hashlib.sha256((home / "models" / f"{name}@1" / "weights.safetensors").read_bytes()).hexdigest()


def resumed(server: Server, id: str) -> int:
    """How often it went on from a checkpoint."""
    return server.http.get(f"/finetune/{id}/log").text.count("going on from step")


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path: Path):
    write_toys(tmp_path)
    spec: dict[str, Any] = {"epochs": 400, "ema": 0.9, "learning_rate": 0.01}
    with Server(tmp_path, **SETTINGS) as server:
        assert ended(server, (quiet := submit(server, "quiet", **spec).json()["id"]))["state"] == "succeeded"
        id = submit(server, "shaken", **spec).json()["id"]
        wait_for(lambda: job(server, id)["progress"].get("step", 0) > 50, 60)
        tuner = next(iter(tuners(server).values()))
        assert tuner.rlimit(psutil.RLIMIT_DATA)[0] != psutil.RLIM_INFINITY, "it may have no more memory than there is"
        tuner.kill()
        wait_for(lambda: resumed(server, id) == 1, 60)
        reached = job(server, id)["progress"]["step"]
        wait_for(lambda: job(server, id)["progress"]["step"] > reached, 60)
        os.kill(server.children()["hearth foreman"].pid, signal.SIGKILL)
        wait_for(lambda: not tuners(server), 5)
        before = resumed(server, id)
        assert job(server, id)["state"] == "running", "it was killed in its middle each time"
        os.kill(server.process.pid, signal.SIGKILL)  # the supervisor, and with it everything
        server.process.wait()
    with Server(tmp_path, **SETTINGS) as server:
        done = ended(server, id)
        assert done["state"] == "succeeded", done
        assert resumed(server, id) > before and "going on" not in server.http.get(f"/finetune/{quiet}/log").text
        assert weights(tmp_path, "quiet") == weights(tmp_path, "shaken")
        wait_for(lambda: server.http.get("/models/shaken").json().get("state") == "ready", 60)
        assert server.http.get("/models/quiet").json()["state"] == "ready", "what a job made is there after a restart"
