"""What `hearth jobs` shows and when `hearth jobs watch` ends, against a server of paper."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from app import cli, jobs
from app.cli import _ask
from app.errors import HearthError, Invalid

JOB = {"id": "a", "model": "m", "spec": {"base": "b"}, "progress": {}, "result": {}, "reason": "", "state": "running"}


class Fake(ThreadingHTTPServer):
    """A job whose `states` are told one a question, the last one for ever, and whose events come in `streams`, one each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states = ["succeeded"]
        self.streams: list[list[dict[str, Any]] | int | bytes] = []
        self.answer: tuple[int, bytes] | None = None
        self.job: dict[str, Any] = JOB
        self.asked: list[str] = []

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server
        if fake.answer:
            self.say(*fake.answer)
        elif self.path.endswith("/events"):
            last = self.headers["Last-Event-ID"]
            fake.asked.append(last)
            stream = fake.streams.pop(0) if fake.streams else []
            if isinstance(stream, bytes):
                self.say(503, stream)
                return
            if isinstance(stream, int):
                self.close_connection = True  # without an answer, as a server that is being ended
                return
            lines = [
                f"id: {n}\nevent: {data.pop('kind', 'state')}\ndata: {json.dumps(data)}\n\n"
                for n, data in enumerate(stream, int(last) + 1)
            ]
            self.say(200, "".join(lines).encode())
        elif self.path == "/finetune":
            self.say(200, json.dumps({"jobs": [fake.job]}).encode())
        else:
            state = fake.states.pop(0) if len(fake.states) > 1 else fake.states[0]
            self.say(200, json.dumps(fake.job | {"state": state}).encode())

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(jobs, "_AGAIN_S", 0.01)
    with Fake() as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        yield fake
        fake.http.close()
        fake.shutdown()


@pytest.fixture
def out() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_all_jobs_are_a_table(fake: Fake, out: Console):
    jobs.show(fake.http, out)
    assert "running" in said(out) and "from" in said(out)


FOREIGN = "[/dark]/x.png :dog: [red]"
LOST = {"step": 5, "steps": 9, "epoch": 1, "loss": None, "metrics": {"spearman": None, "accuracy": None}}


def test_what_others_wrote_is_shown_as_they_wrote_it(fake: Fake):
    fake.job = JOB | {"reason": FOREIGN}
    fake.states = ["failed"]
    fake.streams = [[{"kind": "stage", "stage": FOREIGN}, {"state": "failed", "reason": FOREIGN}]]
    for ask in ([], ["watch", "a"]):
        shown = CliRunner().invoke(cli.app, ["jobs", *ask, "--url", fake.url], env={"COLUMNS": "200"})
        assert FOREIGN in shown.output, (shown.output, shown.exception)


def test_a_figure_that_is_no_number_is_told_as_such(fake: Fake, out: Console):
    fake.job = JOB | {"progress": {**LOST, "best": {"metrics": LOST["metrics"]}}}
    fake.streams = [[{"kind": "progress", **LOST}, {"state": "succeeded"}]]
    jobs.show(fake.http, out)
    assert jobs.watch(fake.http, "a", out)
    assert said(out).count("nan Spearman") == 2 and "loss nan  nan Spearman, nan % accuracy" in said(out)


@pytest.mark.parametrize(("end", "good"), [("succeeded", True), ("failed", False), ("cancelled", False)])
def test_it_ends_with_the_job(fake: Fake, out: Console, end: str, good: bool):
    fake.states = ["running", end]
    fake.streams = [[{"state": "running"}, {"state": end, "reason": "because"}]]
    assert jobs.watch(fake.http, "a", out) is good
    assert f"{end}: because" in said(out)


def test_an_end_that_a_resumed_job_left_behind_is_none(fake: Fake, out: Console):
    fake.states = ["running", "running", "succeeded"]
    fake.streams = [[{"state": "running"}, {"state": "cancelled"}, {"state": "validating"}], [{"state": "succeeded"}]]
    assert jobs.watch(fake.http, "a", out)
    assert fake.asked == ["0", "3"], "what was shown is not shown again"


def test_a_server_that_is_being_restarted_is_waited_for_and_that_is_told_once(fake: Fake, out: Console):
    fake.streams = [[{"state": "running"}], 0, 0, 0, [{"state": "succeeded"}]]
    fake.states = ["running", "running", "succeeded"]
    assert jobs.watch(fake.http, "a", out)
    assert fake.asked == ["0", "1", "1", "1", "1"] and said(out).count("does not answer") == 1


def test_a_database_that_is_away_is_waited_for_and_that_is_told_once(fake: Fake, out: Console):
    away = b'{"code": "unavailable", "detail": "the database of jobs is away; try again"}'
    fake.streams = [[{"state": "running"}], away, away, [{"state": "succeeded"}]]
    fake.states = ["running", "running", "succeeded"]
    assert jobs.watch(fake.http, "a", out)
    assert fake.asked == ["0", "1", "1", "1"] and said(out).count("the database of jobs is away; try again; waiting") == 1


def test_without_a_server_it_says_so(fake: Fake, out: Console, capsys: pytest.CaptureFixture[str]):
    fake.shutdown()
    fake.server_close()
    for ask in (jobs.show, lambda http, out: jobs.watch(http, "a", out)):
        with pytest.raises(httpx.ConnectError):
            ask(fake.http, out)
        with pytest.raises(SystemExit):
            _ask(lambda http, ask=ask: ask(http, out), fake.url)  # type: ignore[misc]
        assert "no server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (
            404,
            b'{"code": "unknown_job", "detail": "no job has the id a"}',
            Invalid,
            "no job has the id a; hearth jobs lists them",
        ),
        (500, b'{"code": "internal", "detail": "a mistake of ours"}', HearthError, "answered 500: a mistake of ours"),
        (502, b"<html>\n bad gateway", HearthError, "answered 502: <html> bad gateway"),
        (200, b"hello", HearthError, "answered 200: hello"),
        (500, b"", HearthError, "answered 500: nothing"),
    ],
)
def test_an_answer_that_is_none_is_told(fake: Fake, out: Console, status: int, body: bytes, error: type[HearthError], words: str):
    fake.answer = (status, body)
    for ask in (jobs.show, lambda http, out: jobs.watch(http, "a", out)):
        with pytest.raises(error) as caught:
            ask(fake.http, out)
        assert words in caught.value.detail


def test_a_refusal_while_it_watches_ends_it(fake: Fake, out: Console, monkeypatch: pytest.MonkeyPatch):
    fake.states = ["running"]
    ask = jobs._ask

    def then_refuse(http: httpx.Client, path: str) -> dict[str, Any]:
        answer = ask(http, path)
        fake.answer = (500, b"")
        return answer

    monkeypatch.setattr(jobs, "_ask", then_refuse)
    with pytest.raises(HearthError, match="answered 500"):
        jobs.watch(fake.http, "a", out)
