"""The server is told to end, or killed, under load; what comes after it is clean."""

from __future__ import annotations

import signal
from pathlib import Path

import faults
from callers import Callers, asked

from tests.chaos.conftest import Chaos, questions
from tests.chaos.toys import SLOW_S, slow
from tests.stack.conftest import Server, picture

ONE = {"HEARTH_MODELS": "toy", "HEARTH_FRONTENDS": "2"}


def test_sigterm_under_load(frail: Path, chaos: Chaos):
    """Whoever sends on a connection at the moment when it is closed, or to a port that is closed, is lost, and knows it at once; of
    all that was begun everything is answered, and heard.
    """
    right, lost_s = 0, list[float]()
    for _ in range(chaos.times(1, 20)):
        with Server(frail, **ONE, HEARTH_LOG_LEVEL="debug") as server:
            known = [asked(server.url, "/predict/image", slow(number), "image/png") for number in range(2)]
            with Callers(server.url, known, count=6) as callers:
                callers.more(1)
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(40) == 0
        counts = callers.counts
        assert not counts.wrong and not counts.failed, counts
        assert all(under_way_s < SLOW_S / 2 for under_way_s in counts.lost_s), counts
        begun = [line for line in server.log.splitlines() if "POST /predict/image " in line]
        assert len(begun) == len(known) + counts.right, counts
        assert all("POST /predict/image 200 " in line for line in begun), begun
        assert "Traceback" not in server.log, server.log
        right, lost_s = right + counts.right, lost_s + counts.lost_s
    chaos.figure("SIGTERM under load", right=right, lost_unread=len(lost_s), in_s=max(lost_s, default=0.0))


def test_the_supervisor_is_killed(frail: Path, chaos: Chaos):
    own = frail.parent / "own"  # other servers of this machine have folders, too
    own.mkdir()

    def folders() -> set[Path]:
        return {path.parent for path in own.glob("hearth-*/supervisor.lock")}

    for _ in range(chaos.times(1, 10)):
        before = folders()
        with Server(frail, **ONE, TMPDIR=str(own)) as server:
            (ours,) = folders() - before
            with Callers(server.url, questions(server), count=2) as callers, faults.nothing_left_of(server.process.pid):
                callers.more(2)
                server.process.kill()
                server.process.wait()
            assert ours.exists()
            port = server.url.rpartition(":")[2]
        with Server(frail, **ONE, TMPDIR=str(own), HEARTH_PORT=port) as server:
            assert not ours.exists(), "the next start sweeps up"
            assert server.predict(picture(1, 2, 3)).status_code == 200
    assert not folders() - before, "an end that was asked for leaves nothing"
    half = [path for path in frail.rglob("*") if path.name.endswith(".part")]
    assert not half
