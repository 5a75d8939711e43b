"""Jobs on texts over HTTP: from a table to a model that answers, classifiers and embeddings, in every method."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.stack.conftest import WORDS, Server, wait_for, write_text

SETTINGS = {"HEARTH_MODELS": "toy-text", "HEARTH_CHECKPOINT_S": "0.05", "HEARTH_THREADS": "1"} | {"HEARTH_TUNER_SHARE": "1"}
QUICK = {"base": "toy-text", "epochs": 6, "batch_size": 8, "learning_rate": 0.01}
GOOD, BAD = ("good", "great", "fine"), ("bad", "dull", "poor")


def said(seed: int, words: tuple[str, ...]) -> str:
    drawn = random.Random(seed)
    filling = [word for word in WORDS if word not in (*GOOD, *BAD)]
    return " ".join([*drawn.choices(filling, k=drawn.randint(2, 7)), drawn.choice(words)])


def labelled(count: int = 60) -> str:
    rows = [f"{said(n, (BAD, GOOD)[n % 2])}\t{('bad', 'good')[n % 2]}" for n in range(count)]
    return "\n".join(["sentence\tlabel", *rows, ""])


def scored(count: int = 60) -> str:
    rows = [
        json.dumps({"sentence1": said(n, GOOD), "sentence2": said(1000 + n, (BAD, GOOD)[n % 2]), "score": 5 * (n % 2)})
        for n in range(count)
    ]
    return "\n".join(rows)


def triplets(count: int = 60) -> str:
    return "anchor,positive,negative\n" + "\n".join(
        f"{said(n, GOOD)},{said(1000 + n, GOOD)},{said(n, BAD)}" for n in range(count)
    )


def packed(**tables: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, table in tables.items():
            archive.writestr(f"data/{name}.tsv", table)
    return out.getvalue()


def submit(server: Server, name: str, data: str | bytes, **spec: Any) -> httpx.Response:
    raw = data.encode() if isinstance(data, str) else data
    parts = {"spec": (None, json.dumps(QUICK | {"name": name} | spec)), "dataset": ("data", raw)}
    return server.http.post("/finetune", files=parts)


def ended(server: Server, answer: httpx.Response, seconds: float = 110) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    id = answer.json()["id"]
    wait_for(lambda: server.http.get(f"/finetune/{id}").json()["state"] in ("succeeded", "failed", "cancelled"), seconds)
    job: dict[str, Any] = server.http.get(f"/finetune/{id}").json()
    return job | {"log": server.http.get(f"/finetune/{id}/log").text}


def ready(server: Server, name: str) -> None:
    wait_for(lambda: server.http.get(f"/models/{name}").json().get("state") == "ready", 30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_text(home / "models" / "toy-text")
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with Server(home, **SETTINGS) as server:
        yield server


def test_before_there_is_a_classifier_the_way_to_one_is_told(server: Server):
    answer = server.http.post("/predict/text", json={"inputs": "a good film"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert "POST /finetune makes one" in answer.json()["detail"]
    answer = server.http.post("/predict/text", json={"inputs": "a", "model": "toy-text"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "'toy-text' is for text-embedding" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_an_embedding_model_becomes_a_classifier_by_the_columns_of_the_data(server: Server, method: str):
    job = ended(
        server, submit(server, f"mood-{method}", labelled(), method=method, epochs={"full": 6, "head": 60, "lora": 30}[method])
    )
    assert job["state"] == "succeeded", job["log"]
    assert job["report"]["task"] == job["spec"]["task"] == "text-classification"
    assert job["report"]["classes"] == ["bad", "good"] and job["report"]["val"] == {"bad": 6, "good": 6}
    assert job["spec"]["per_epoch"] == (None if method == "head" else 12_288) and job["result"]["versions"]["peft"]
    assert job["result"]["metrics"]["accuracy"] > 0.9
    ready(server, f"mood-{method}")
    body = server.http.post(
        "/predict/text",
        json={"inputs": ["the plot was dull", "great music and a fine end", ""], "model": f"mood-{method}", "top_k": 1},
    ).json()
    labels = [result["predictions"][0]["label"] for result in body["results"][:2]]
    assert labels == ["bad", "good"] and body["results"][2]["error"]["code"] == "invalid"
    told = server.model(f"mood-{method}")
    origin = {"metrics": job["result"]["metrics"], "base": "toy-text", "job": job["id"]}
    assert told["meta"]["classes"] == 2 and told["versions"][0].items() >= origin.items()
    answer = server.http.post("/predict/text", json={"inputs": "a"})
    assert answer.status_code == 404 and f"mood-{method}" in answer.json()["detail"]
    answer = server.http.post("/predict/text", json={"inputs": "a " * 20, "model": f"mood-{method}"})
    assert answer.status_code == 413 and "truncate" in answer.json()["detail"]
    assert server.http.post("/predict/text", json={"inputs": "a " * 20, "model": f"mood-{method}", "truncate": True}).is_success


def test_a_classifier_is_tuned_further(server: Server):
    job = ended(server, submit(server, "moods", labelled(), base="mood-full", epochs=1))
    assert job["state"] == "succeeded" and job["report"]["task"] == "text-classification", job["log"]


@pytest.mark.parametrize(
    ("name", "data", "metric", "method"),
    [
        ("alike", scored(), "spearman", "full"),
        ("alike", scored(), "spearman", "lora"),
        ("nearer", triplets(), "accuracy", "full"),
    ],
    ids=["pairs", "pairs by LoRA", "triplets"],
)
def test_embeddings_are_tuned_on_pairs_and_triplets(server: Server, home: Path, name: str, data: str, metric: str, method: str):
    job = ended(server, submit(server, f"{name}-{method}", data, method=method, epochs=60))
    assert job["state"] == "succeeded", job["log"]
    assert job["report"]["task"] == "text-embedding" and job["report"]["train"] == 48
    assert next(iter(job["result"]["metrics"])) == metric and job["result"]["metrics"][metric] > 0.4
    ready(server, f"{name}-{method}")
    folder = home / "models" / f"{name}-{method}@1"
    sample = json.loads((folder / "sample.json").read_text()) | {"model": f"{name}-{method}"}
    expected = json.loads((folder / "expected.json").read_text())
    answer = server.http.post("/embed/text", json=sample).json()["embeddings"][0]
    np.testing.assert_allclose(answer[:8], expected["begins"], atol=1e-5)
    texts = [f"the film was {word}" for word in (*GOOD, *BAD)]
    body = server.http.post("/embed/text", json={"inputs": texts, "model": f"{name}-{method}"}).json()
    vectors = np.array(body["embeddings"])
    cosines = vectors[:3] @ vectors.T
    assert (cosines[:, :3].sum() - 3) / 6 > cosines[:, 3:].mean(), "of good ones with each other, and with bad ones"


def test_lora_serves_as_plain_weights(server: Server, home: Path):
    from safetensors.numpy import load_file

    assert ended(server, submit(server, "merged", scored(), method="lora", epochs=1))["state"] == "succeeded"
    of_base = load_file(home / "models" / "toy-text" / "model.safetensors").keys()
    assert load_file(home / "models" / "merged@1" / "model.safetensors").keys() == {
        name
        for name in of_base
        if not name.startswith("pooler.")  # means of tokens take no part of that
    }


def test_a_split_of_its_own_is_kept_and_test_is_left_alone(server: Server):
    whole = labelled(60).splitlines(keepends=True)
    parts = {"train": whole[:41], "dev": whole[:1] + whole[41:51], "test": whole[:1] + whole[51:]}
    job = ended(server, submit(server, "parted", packed(**{name: "".join(rows) for name, rows in parts.items()}), epochs=1))
    assert job["state"] == "succeeded", job["log"]
    assert job["report"]["train"] == {"bad": 20, "good": 20} and job["report"]["val"] == {"bad": 5, "good": 5}
    assert "10 rows of test are left alone" in " ".join(job["report"]["warnings"])


def test_what_is_wrong_is_told_at_once_by_line(server: Server):
    job = ended(server, submit(server, "wrong", 'text,label\n,good\n"good",\nonly one cell\n'))
    assert job["state"] == "failed"
    assert [problem["where"] for problem in job["report"]["problems"][:3]] == ["dataset:2", "dataset:3", "dataset:4"]
    assert "dataset:2: has no text; fill it in" in job["reason"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"task": "speech-recognition"}, "can be tuned to one of: text-embedding, text-classification"),
        ({"task": "text-embedding", "method": "head"}, "models for text-embedding are tuned by one of: full, lora"),
        ({"start": "fresh"}, "not begun afresh"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, spec: dict[str, Any], words: str):
    answer = submit(server, "refused", labelled(), **spec)
    assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


def test_a_method_that_the_data_rules_out_is_told(server: Server):
    job = ended(server, submit(server, "no-head", scored(), method="head"))
    assert job["state"] == "failed" and "tuned by one of: full, lora" in job["reason"]


def test_killed_it_ends_with_the_same_weights(server: Server, home: Path):
    spec: dict[str, Any] = {"epochs": 60, "method": "full", "learning_rate": 0.001}
    assert ended(server, submit(server, "quiet", scored(), **spec))["state"] == "succeeded"
    answer = submit(server, "shaken", scored(), **spec)
    id = answer.json()["id"]
    wait_for((home / "jobs" / id / "checkpoint.pt").exists, 60)
    next(process for name, process in server.children().items() if name.startswith("hearth tune")).kill()
    job = ended(server, answer)
    assert job["state"] == "succeeded" and "going on from step" in job["log"], job["log"]
    digests = {
        hashlib.sha256((home / "models" / f"{name}@1" / "model.safetensors").read_bytes()).digest()
        for name in ("quiet", "shaken")
    }
    assert len(digests) == 1
