"""The machine gives way: disks, clock, descriptors, memory."""

from __future__ import annotations

import contextlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faults
import httpx
import numpy as np
import psutil
import pytest
from callers import Callers, Line, asked
from PIL import Image

from app.web.connection import most_connections
from tests.chaos import toys
from tests.chaos.conftest import Chaos, jpeg, own_descriptors, questions, set_ahead, strangers
from tests.stack.conftest import Server, picture, saved, wait_for

ONE = {"HEARTH_MODELS": "toy", "HEARTH_FRONTENDS": "1"}


def asked_by_form(server: Server) -> int:
    """A picture of three megabytes in a form: nothing that is kept on a disk on its way."""
    raw = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)))
    return server.http.post("/predict/image", files={"file": ("large.png", raw, "image/png")}).status_code


def test_the_home_volume_is_full_then_read_only(small_disk: Path, chaos: Chaos):
    home = toys.write(small_disk)
    with Server(home, **ONE) as server, Callers(server.url, questions(server)) as callers:
        callers.more()
        filler = small_disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                file.flush()
        assert asked_by_form(server) == 200
        felt = [callers.felt(lambda: faults.kill(server.process.pid, "toy"))]
        callers.more()
        assert server.http.post("/models/other/load").json()["state"] == "ready"
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        assert asked_by_form(server) == 200
        felt.append(callers.felt(lambda: faults.kill(server.process.pid, "toy")))
        callers.more()
        files = {"dataset": ("a.zip", b"PK", "application/zip")}
        answer = server.http.post("/finetune", data={"spec": '{"base": "toy", "name": "x"}'}, files=files)
        assert answer.status_code in (413, 503) and answer.headers["content-type"] == "application/problem+json", answer.text
    chaos.note("home volume full, then read-only", callers.counts, felt)
    with Server(home, **ONE) as server:
        assert server.predict(picture(1, 2, 3)).status_code == 200, "it starts on a read-only home, too"
    assert "Traceback" not in server.log, server.log


def test_the_clock_jumps(frail: Path, clock: tuple[Path, dict[str, str]], chaos: Chaos):
    file, believe = clock

    def date(server: Server) -> str:
        return httpx.get(f"{server.url}/health/live").headers["date"][5:16]

    with Server(frail, **ONE, **believe) as server, Callers(server.url, questions(server)) as callers:
        felt = []
        for days in (400, -400, 0):
            before = date(server)
            set_ahead(file, days)
            wait_for(lambda before=before: date(server) != before)
            callers.more(3)
            assert server.http.get("/health/ready").status_code == 200
            felt.append(callers.felt(lambda: faults.kill(server.process.pid, "toy")))
            callers.more(3)
    chaos.note("clock forward and back by 400 days", callers.counts, felt)


def connections(frontend: psutil.Process) -> int:
    """Those of callers that it has accepted."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in frontend.net_connections("tcp"))


def test_idle_connections_take_all_that_a_frontend_has_for_them(frail: Path, chaos: Chaos):
    """More than it may have: those that are idle make room for the others. What happens when there is none at all: below."""
    limit, count = 160, chaos.times(300, 3000)
    with contextlib.ExitStack() as held, Server(frail, under=["prlimit", f"--nofile={limit}"], **ONE) as server:
        held.enter_context(own_descriptors())
        known = questions(server)
        with Callers(server.url, known) as callers:
            callers.more()
            (frontend,) = faults.processes(server.process.pid, "http")
            taken = []
            for number, stranger in enumerate(strangers(server, count)):
                held.callback(stranger.close)
                if number % 10 == 0:
                    taken.append(connections(frontend))
            callers.more()
            left = connections(frontend)
            felt = [callers.felt(lambda: faults.kill(server.process.pid, "toy"))]
            callers.more()
            assert server.http.get("/health/ready").status_code == 200
    chaos.note("connections taken by idle ones", callers.counts, felt)
    chaos.figure("the same", opened=count, taken=max(taken), left=left)
    assert max(taken) > most_connections(limit) / 2, "they had less than there is"
    assert left <= most_connections(limit), "many make room at once"


@pytest.mark.parametrize(("victim", "said"), [("toy", "died ("), ("http", "cannot be started for now: [Errno 24]")])
def test_a_process_is_killed_when_none_has_a_descriptor_left(frail: Path, chaos: Chaos, victim: str, said: str):
    """Those of the one that is killed are all that its successor finds: who asks meanwhile is answered when there are some again, and
    so is who comes meanwhile.
    """
    felt, told = [], 0
    with Server(frail, **ONE) as server, Callers(server.url, questions(server)) as callers, ThreadPoolExecutor(1) as asking:

        def successors(dead: psutil.Process) -> list[psutil.Process]:
            """That the supervisor could start: it had opened something just as its descriptors were counted."""
            return [one for one in faults.processes(server.process.pid, "http") if one != dead]

        for _ in range(chaos.times(1, 10)):
            wait_for(lambda: all(faults.processes(server.process.pid, name) for name in ("toy", "http", "nursery", "spare")))
            callers.more()
            assert server.http.get("/models/toy").status_code == 200
            with contextlib.ExitStack() as held:
                held.enter_context(faults.no_descriptors(server.process.pid))
                newcomer = asking.submit(httpx.get, f"{server.url}/health/live", timeout=60)
                callers.more(3)
                assert server.http.get("/models/toy").status_code == 200
                before = len(server.log)
                assert not newcomer.done()
                dead = faults.kill(server.process.pid, victim)
                wait_for(lambda before=before, dead=dead: said in server.log[before:] or (victim == "http" and successors(dead)))
                told += said in server.log[before:]
                felt.append(callers.felt(held.close))
            assert newcomer.result().status_code == 200
    chaos.note(f"no descriptor is left, and {victim} is killed", callers.counts, felt)
    assert told >= len(felt) // 2, "that none can be started is seldom said"


def test_a_frontend_takes_over_when_none_is_left_to_look_for_connections_with(frail: Path, chaos: Chaos):
    """It did not begin, because it lists its descriptors. Now who has a connection is answered; who comes, as soon as there are some."""
    with Server(frail, **ONE) as server, Callers(server.url, questions(server)) as callers, ThreadPoolExecutor(1) as asking:
        callers.more()
        supervisor = psutil.Process(server.process.pid)
        with faults.no_descriptors(server.process.pid):
            two = faults.free_number(supervisor.pid, after=2)
            supervisor.rlimit(psutil.RLIMIT_NOFILE, (two, supervisor.rlimit(psutil.RLIMIT_NOFILE)[1]))  # it can start one
            felt = callers.felt(lambda: faults.kill(server.process.pid, "http"))
            newcomer = asking.submit(httpx.get, f"{server.url}/health/live", timeout=60)
            callers.more(3)
        assert newcomer.result().status_code == 200
    chaos.note("no descriptor is left, but two to start a frontend with, and http is killed", callers.counts, [felt])


def test_the_first_that_a_frontend_is_asked_comes_when_no_descriptor_is_left(tmp_path: Path):
    """Pictures were told that they are damaged, because what reads them could not be imported. Now nothing is imported so late, and
    what takes a descriptor (a model's files, a process that reads a JPEG) waits for one.
    """
    home = toys.write(tmp_path)
    (home / "models" / "other" / "labels.txt").write_text("".join(f"label {number}\n" for number in range(16)))
    with Server(home, HEARTH_MODELS="toy,other", HEARTH_FRONTENDS="1") as server, contextlib.ExitStack() as held:
        plain = questions(server)
        needy = [
            *questions(server, "other"),
            *(asked(server.url, "/predict/image", jpeg(side), "image/jpeg") for side in (300, 1000)),
        ]
        lines = [Line(server.url) for _ in (*plain, *needy)]
        for line, question in zip(lines, [*plain, *needy], strict=True):
            held.callback(line.close)
            assert question.outcome(*line.ask(question)) == "right"
        before = faults.kill(server.process.pid, "http")
        wait_for(lambda: {one.pid for one in faults.processes(server.process.pid, "http")} - {before.pid})
        assert server.http.get("/health/live").status_code == 200
        threads = held.enter_context(ThreadPoolExecutor(len(lines)))
        with faults.no_descriptors(server.process.pid):
            sent = [threads.submit(line.ask, one) for line, one in zip(lines, [*plain, *needy], strict=True)]
            assert {one.outcome(*answer.result()) for one, answer in zip(plain, sent, strict=False)} == {"right"}
            assert not any(answer.done() for answer in sent[len(plain) :])
        assert {one.outcome(*answer.result()) for one, answer in zip(needy, sent[len(plain) :], strict=True)} == {"right"}


def test_ten_thousand_idle_connections(frail: Path, chaos: Chaos):
    """In the long form, and where this process may have as many."""
    with own_descriptors() as most, contextlib.ExitStack() as held, Server(frail, **ONE, HEARTH_SILENCE_S="600") as server:
        count = min(chaos.times(2_000, 10_000), most // 2)
        with Callers(server.url, questions(server)) as callers:
            callers.more()
            began = time.monotonic()
            opened = [held.callback(stranger.close) for stranger in strangers(server, count)]
            callers.more()
            spent_s = time.monotonic() - began
            (frontend,) = faults.processes(server.process.pid, "http")
            figures = {"connections": len(opened), "seconds": spent_s, "frontend_mib": frontend.memory_info().rss / 2**20}
        chaos.note(f"{count} idle connections", callers.counts)
        chaos.figure("the same", **figures)
        assert len(opened) == count
        wait_for(lambda: frontend.num_fds() > count, 30)
        assert not chaos.long or count == 10_000, f"only {most} descriptors are allowed here; 20,000 are needed"


def test_when_memory_ends_the_kernel_takes_a_worker_first(server: Server):
    def score(name: str) -> int:
        (process, *_) = faults.processes(server.process.pid, name)
        return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())

    ours = int(Path(f"/proc/{server.process.pid}/oom_score_adj").read_text())
    assert score("toy") > score("http") == score("nursery") == ours
