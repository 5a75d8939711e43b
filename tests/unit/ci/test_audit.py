"""What `make check` says of known vulnerabilities: that there are some, none, or that nobody could be asked."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

LOCK = "one==1.0 \\\n    --hash=sha256:00\ntwo==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:11\n    # via one\n"


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, over a lock of two packages."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    (tmp_path / "requirements.lock").write_text(LOCK)
    (tmp_path / "pyproject.toml").write_text('[tool.hearth.audit]\nGHSA-known = "we never call it"\n')
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return program


class Service(HTTPServer):
    status = 200
    known: dict[str, list[str]] = {}  # noqa: RUF012  each fixture makes its own


@pytest.fixture
def service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        server: Service

        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
            names = [(query["package"]["name"], query["package"]["ecosystem"], query["version"]) for query in queries]
            assert names == [("one", "PyPI", "1.0"), ("two", "PyPI", "2.0")]
            found = [{"vulns": [{"id": id} for id in ids]} if (ids := self.server.known.get(name)) else {} for name, *_ in names]
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(json.dumps({"results": found}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with Service(("127.0.0.1", 0), Handler) as server:
        server.known = {}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(audit: ModuleType, port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["audit.py", "--url", f"http://127.0.0.1:{port}"])
    status: int = audit.main()
    return status


def test_nothing_known_is_well(audit: ModuleType, service: Service, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(audit, service.server_port, monkeypatch) == 0
    assert "2 packages asked about, 0 with" in capsys.readouterr().out


def test_what_is_known_fails_and_is_named_but_for_what_is_accepted(audit, service, monkeypatch, capsys):
    service.known = {"two": ["GHSA-known", "GHSA-news"], "one": ["GHSA-known"]}
    assert run(audit, service.server_port, monkeypatch) == 1
    assert capsys.readouterr().err == "two 2.0: https://osv.dev/GHSA-news\n"


@pytest.mark.parametrize("status", [0, 403, 407, 429, 503])
def test_where_nobody_answers_that_is_said_and_is_no_failure(audit, service, monkeypatch, capsys, status: int):
    service.status = status
    assert run(audit, service.server_port if status else 9, monkeypatch) == 0
    assert re.match("NOT AUDITED: http://127", capsys.readouterr().err)


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_service_that_does_not_understand_the_question_fails(audit, service, monkeypatch, status: int):
    service.status = status
    with pytest.raises(urllib.error.HTTPError):
        run(audit, service.server_port, monkeypatch)


def test_all_pins_of_the_lock_are_asked_about(audit: ModuleType):
    lock = (ROOT / "requirements.lock").read_text()
    lines = [line for line in lock.splitlines() if line and line[0].isalnum()]
    assert len(audit.pinned(lock)) == len({line.split(" ")[0] for line in lines}) > 50
