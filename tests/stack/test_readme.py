"""README's questions get README's answers: each `$ curl` in it is asked of a real server, and what stands below it is compared.

`…` stands for any number of things that are left out; without one nothing may be missing. Numbers with a point may differ by
0.001, because answers are rounded there and processors round too; all else is compared exactly, except for spaces.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.rules import readme
from tests.stack.conftest import Server, wait_for

ADDRESS = "127.0.0.1:8000"
TOLERANCE = 0.001
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
TOKEN = re.compile(rf'"(?:[^"\\]|\\.)*"|{NUMBER.pattern}|\S')
JOB = re.compile(r"(?<=/finetune/)[0-9a-f]{12}")
# What else can be done with a job is told in a sentence. What has no page in the documentation comes with it.
ELSEWHERE = ("/finetune",)
UNDOCUMENTED = {"GET /docs"}


def spoken() -> list[tuple[str, str]]:
    """Each `$ curl …` of README and what is below it, in order."""
    blocks = [block for block in readme.code_blocks(readme.text()) if block.startswith("$ ")]
    return [
        (curl, answer)
        for block in blocks
        for curl, answer in re.findall(r"^\$ (curl .*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


def same(written: str, real: str) -> bool:
    if NUMBER.fullmatch(written) and NUMBER.fullmatch(real) and "." in written:
        return abs(float(written) - float(real)) <= TOLERANCE
    begin, ellipsis, end = written.partition("…")
    return real == written if not ellipsis else real.startswith(begin) and real.endswith(end)


def matches(written: str, real: str) -> bool:
    """Whether the pieces between the ellipses stand in `real`, in order: the first at its beginning, the last at its end."""
    tokens = TOKEN.findall(real)
    pieces: list[list[str]] = [[]]
    for token in TOKEN.findall(written):
        if token == "…":
            pieces.append([])
        else:
            pieces[-1].append(token)

    def stands(piece: list[str], at: int) -> bool:
        return at >= 0 and len(tokens) - at >= len(piece) and all(map(same, piece, tokens[at:]))

    first, *others = pieces
    at = len(first)
    if not stands(first, 0) or not others:
        return stands(first, 0) and at == len(tokens)
    *middle, last = others
    for piece in middle:
        at = next((place for place in range(at, len(tokens)) if stands(piece, place)), len(tokens)) + len(piece)
    return len(tokens) - len(last) >= at and stands(last, len(tokens) - len(last))


def target(curl: str) -> str:
    """`POST /models/digits/load`."""
    words = shlex.split(curl)
    path = next(word for word in words if word.startswith(ADDRESS)).removeprefix(ADDRESS).partition("?")[0]
    sends = any(word in ("-F", "--json", "--data-binary") for word in words)
    return f"{words[words.index('-X') + 1] if '-X' in words else 'POST' if sends else 'GET'} {path}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The starters as they answer by default, but in fp32 and by what needs no race to be chosen."""
    pytest.importorskip("openvino")
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    settings = {"HEARTH_COMPUTE": "openvino", "HEARTH_DEVICES": "cpu", "HEARTH_TUNER_SHARE": "1"}
    with Server(tmp_path_factory.mktemp("home"), **settings) as server:
        yield server


def reviews(folder: Path) -> Path:
    """What a reader's `reviews.csv` may be."""
    praise, blame = ("charming", "delightful", "moving", "a joy"), ("dull", "a mess", "tiresome", "awful")
    rows = [f"the {what} was {word},{label}" for what in ("film", "plot", "acting", "music", "ending")
            for label, words in (("bad", blame), ("good", praise)) for word in words]  # fmt: skip
    path = folder / "reviews.csv"
    path.write_text("\n".join(["text,label", *rows, ""]))
    return path


@pytest.mark.timeout(600)
def test_every_curl_gets_the_answer_below_it(server: Server, tmp_path: Path):
    asked = spoken()
    assert len(asked) >= 14
    wait_for(lambda: "why" in server.model("all-minilm-l6-v2")["meta"]["compute"], 150)

    def ask(curl: str) -> str:
        here = (
            JOB.sub(job, curl)
            .replace(ADDRESS, server.url.removeprefix("http://"))
            .replace("@reviews.csv", f"@{reviews(tmp_path)}")
        )
        done = subprocess.run(shlex.split(here), cwd=ROOT, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, f"{curl}\n{done.stderr}"
        return done.stdout

    def live() -> bool:
        versions = server.http.get("/models/mood").json().get("versions", [])
        return [one["state"] for one in versions] == ["ready"] * jobs

    job, jobs = "", 0
    for curl, written in asked:
        if target(curl) in ("POST /predict/text", "PUT /models/mood/traffic"):  # what the last job made
            wait_for(live, 150)
        if target(curl) == "GET /metrics":  # written a few times a second
            wait_for(lambda curl=curl, written=written: matches(written, ask(curl)), 10)
        else:
            real = ask(curl)
            assert matches(written, real), f"{curl}\nREADME: {written}\nreal:   {real[:4000]}"
            if target(curl) == "POST /finetune":
                job, jobs = json.loads(real)["id"], jobs + 1


def test_every_endpoint_is_asked_and_files_are_in_the_repository(server: Server):
    paths = server.http.get("/openapi.json").json()["paths"]
    documented = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs if not path.startswith(ELSEWHERE)}
    asked = {target(curl) for curl, _ in spoken()}
    patterns = {one: re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(one)) for one in documented | UNDOCUMENTED}
    assert [one for one, pattern in patterns.items() if not any(re.fullmatch(pattern, target) for target in asked)] == []
    files = {file for curl, _ in spoken() for file in re.findall(r"@([^\s'\"]+)", curl)} - {"reviews.csv"}
    assert {file for file in files if not (ROOT / file).is_file()} == set()


@pytest.mark.parametrize(
    ("written", "real", "right"),
    [
        ('{"a": 1, "b": [0.93, …]}', '{"a":1,"b":[0.9301,5,{"c":2}]}', True),
        ('{"a": 1, …, "d": {…}}', '{"a":1,"b":"","d":{"e":[1]}}', True),
        ('{"why": "fastest of …"}', '{"why":"fastest of 2"}', True),
        ('{"a": 1}', '{"a":1,"b":2}', False),
        ('{"a": 1, "d": 3}', '{"a":1,"b":"","d":3}', False),
        ('{"a": 1, …, "d": 3}', '{"a":1,"d":3}', False),
        ('{"a": 1, …}', '{"a":2,"b":3}', False),
        ('{"a": 0.93}', '{"a":0.94}', False),
        ('{"a": [], …}', '{"a":[1],"b":2}', False),
        ("… x 1.0 …", "w 1\nx 2.0\ny", False),
    ],
)
def test_the_rule_sees_what_is_missing_without_an_ellipsis(written: str, real: str, right: bool):
    assert matches(written, real) == right
