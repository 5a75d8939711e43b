"""Jobs where what they lean on gives way: a disk that fills, a database that goes away."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import Postgres
from tests.stack.conftest import Server, picture, wait_for, write_toys
from tests.stack.test_finetune import SETTINGS, ended, job, submit


def bulky(count: int = 40) -> bytes:
    """Pictures that take 200 kB each when they are unpacked, and 6 kB before."""
    random, out = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for label, low in (("dark", 0), ("bright", 150)):
            for number in range(count):
                raw, pixels = io.BytesIO(), np.full((256, 256, 3), low + number, np.uint8)
                pixels[:8] = random.integers(0, 255, (8, 256, 3))
                Image.fromarray(pixels).save(raw, "BMP")
                archive.writestr(f"{label}/{number}.bmp", raw.getvalue())
    return out.getvalue()


def test_a_disk_that_fills_ends_the_job_and_with_more_room_it_is_resumed(small_disk: Path):
    write_toys(small_disk)
    with Server(small_disk, **SETTINGS) as server:
        failed = ended(server, (id := submit(server, "large", bulky()).json()["id"]))
        assert (failed["state"], failed["reason"]) == (
            "failed",
            "the disk is full; make room in HEARTH_HOME, then resume the job",
        )
        assert ended(server, submit(server, "small").json()["id"])["state"] == "succeeded", "others have the room again"
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        assert server.http.post(f"/finetune/{id}/resume").status_code == 200
        done = ended(server, id)
        assert done["state"] == "succeeded", done["reason"]


def test_a_job_in_postgresql_goes_on_when_the_database_was_away(tmp_path: Path, postgres: Postgres):
    write_toys(tmp_path)
    with Server(tmp_path, **SETTINGS, HEARTH_DATABASE=postgres.fresh()) as server:
        id = submit(server, "shades", epochs=1000).json()["id"]
        wait_for(lambda: job(server, id)["progress"].get("step", 0) > 20, 60)
        running = job(server, id)
        assert running["state"] == "running" and running["result"]["versions"]["torch"], "what repeats it is known"
        postgres.stop()
        away = server.http.get(f"/finetune/{id}")
        assert (away.status_code, away.json()["code"]) == (503, "unavailable") and away.headers["retry-after"]
        assert server.predict(picture(9, 9, 9)).status_code == 200, "models answer all the same"
        postgres.start()
        wait_for(lambda: server.http.get(f"/finetune/{id}").status_code == 200, 30)
        done = ended(server, id)
        assert done["state"] == "succeeded", done["reason"]
        told = server.http.get(f"/finetune/{id}/events").text
        assert told.count('"state":"running"') > 1 and '"state":"succeeded"' in told, "it was begun again"
        assert server.http.get(f"/finetune/{id}/events", headers={"Last-Event-ID": "2147483648"}).status_code == 422
        for what in ("", "/events", "/log"):
            assert server.http.get(f"/finetune/%00{what}").json()["code"] == "unknown_job"
        wait_for(lambda: server.http.get("/models/shades").json().get("state") == "ready", 20)
        assert server.http.delete(f"/finetune/{id}").status_code == 204
        assert server.http.get("/finetune").json() == {"jobs": []}
