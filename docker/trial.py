"""Try the built image as its users do: `docker compose up`, ask, kill, stop, once more with keys. Says what it saw; the first
surprise ends it with 1.

    make container-test [COMPOSE=docker-compose]      builds the image first; the other ways to call it are in CONTRIBUTING.md

It serves the starters in a compose project of its own, and takes its volume away again. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"COMPOSE_PROJECT_NAME": "hearth-trial", "HEARTH_PROFILE": "starter", "HEARTH_MODELS": "", "HEARTH_KEYS_FILE": ""}
KEYED = {"HEARTH_KEYS_FILE": "/data/keys.jsonl"}  # as docker-compose.yml says
UID = 10001
GRACE_S = 45  # stop_grace_period of docker-compose.yml
TEXT = json.dumps({"inputs": "a warm hearth"}).encode()
# No proxy: the address is this machine's own.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Surprise(Exception):
    """What was seen, and what should have been."""


def expect(seen: object, wanted: object, what: str) -> None:
    """Print it. Raises Surprise if it is not what was wanted."""
    print(f"  {what}: {seen}", flush=True)
    if seen != wanted:
        raise Surprise(f"{what}: {seen}, expected {wanted}")


def until(what: str, reached: Callable[[], Any], seconds: float) -> Any:
    """Ask until it is true; its value. Raises Surprise after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := reached()):
        if time.monotonic() > end:
            raise Surprise(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.2)
    return found


def ran(command: list[str], *, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it in the repository, with `more` in its environment. Raises Surprise with its complaint if it fails, unless told not
    to `check`.
    """
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT | more, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise Surprise(f"{shlex.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done


@dataclass(frozen=True)
class Trial:
    """One container that compose started."""

    docker: list[str]
    compose: list[str]
    url: str
    container: str = ""

    def up(self, **environment: str) -> Trial:
        """What compose has started then: another container where the environment changed."""
        ran([*self.compose, "up", "--detach", "--no-build"], **environment)
        return replace(self, container=ran([*self.compose, "ps", "--quiet", "hearth"]).stdout.strip())

    def inspect(self, what: str) -> str:
        """A field of `docker inspect`."""
        return ran([*self.docker, "inspect", "--format", f"{{{{{what}}}}}", self.container]).stdout.strip()

    def inside(self, code: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a line of Python in the container: the image has no other tools for sure."""
        return ran([*self.docker, "exec", *options, self.container, "python", "-c", code], check=check)

    def say(self, path: str, body: bytes | None = None, kind: str = "application/json", key: str = "") -> tuple[int, bytes]:
        """Status and body of an answer through the published port."""
        heads = ({"Content-Type": kind} if body else {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, data=body, headers=heads)  # noqa: S310  http, as it was given
        try:
            with OPENER.open(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise Surprise(f"{self.url}{path}: {error}") from None

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """The JSON of an answer. Raises Surprise for an error."""
        status, said = self.say(path, body, kind)
        if status != 200:
            raise Surprise(f"{path}: {status} {said.decode(errors='replace')[:500]}")
        return json.loads(said)


def becomes_healthy(trial: Trial) -> None:
    """Docker's own word."""
    start = time.monotonic()
    until("Docker calls the container healthy", lambda: trial.inspect(".State.Health.Status") == "healthy", 330)
    print(f"  healthy after {time.monotonic() - start:.0f} s", flush=True)


def is_healthy(trial: Trial) -> None:
    """Docker's own word, and the server's."""
    becomes_healthy(trial)
    expect(trial.ask("/health/ready")["status"], "ready", "GET /health/ready")


def answers(trial: Trial) -> None:
    """The four endpoints give what the cards' samples should get."""
    picture = (ROOT / "models/cifar-resnet/sample.jpg").read_bytes()
    label = json.loads((ROOT / "models/cifar-resnet/expected.json").read_text())["label"]
    best = trial.ask("/predict/image", picture, "image/jpeg")["results"][0]["predictions"][0]
    expect(best["label"], label, "POST /predict/image")
    expect(len(trial.ask("/embed/image", picture, "image/jpeg")["embeddings"]), 1, "POST /embed/image, embeddings")
    expect(len(trial.ask("/embed/text", TEXT)["embeddings"][0]), 384, "POST /embed/text, dimensions")
    speech = (ROOT / "models/spoken-digits/sample.wav").read_bytes()
    expected = json.loads((ROOT / "models/spoken-digits/expected.json").read_text())["text"]
    expect(trial.ask("/transcribe", speech, "audio/wav")["results"][0]["text"], expected, "POST /transcribe")


def is_confined(trial: Trial) -> None:
    """An ordinary user everywhere, a root file system that not even root can write to, and a volume that the server can."""
    expect(int(trial.inside("import os; print(os.getuid())").stdout), UID, "user of the container")
    status = trial.inside("print(open('/proc/1/status').read())").stdout
    expect(next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:")), str(UID), "user of process 1")
    expect(trial.inspect(".HostConfig.ReadonlyRootfs"), "true", "read-only root")
    refused = trial.inside("open('/opt/hearth/trial', 'w')", "--user", "0", check=False)
    expect("Read-only file system" in refused.stderr, True, "root cannot write to /opt/hearth")
    trial.inside("import pathlib; path = pathlib.Path('/data/trial'); path.write_text('x'); path.unlink()")
    print("  /data can be written to", flush=True)
    expect(trial.inspect(".HostConfig.CapDrop"), "[ALL]", "capabilities that it has not")
    expect(next(line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs:")), "1", "no new privileges")


def keeps_others_out(trial: Trial) -> None:
    """Without keys whoever comes from outside of the container may ask models, and nothing else."""
    if trial.inspect(".HostConfig.NetworkMode") == "host":
        print("  not tried: it shares this machine's network, so we do not come from outside", flush=True)
        return
    expect(trial.say("/metrics")[0], 403, "GET /metrics from outside, status")
    expect(trial.say("/models/all-minilm-l6-v2/unload", b"{}")[0], 403, "POST /models/…/unload from outside, status")


def is_recovering(trial: Trial) -> None:
    """The next request is answered by the worker that replaces a killed one."""
    where = "/models/all-minilm-l6-v2"
    pid = trial.ask(where)["workers"][0]["pid"]
    trial.inside(f"import os; os.kill({pid}, 9)")
    start = time.monotonic()
    expect(len(trial.ask("/embed/text", TEXT)["embeddings"][0]), 384, f"answer after kill -9 of worker {pid}, dimensions")
    print(f"  after {time.monotonic() - start:.2f} s", flush=True)
    until("another worker", lambda: [w for w in trial.ask(where)["workers"] if w["pid"] != pid and w["state"] == "ready"], 30)


def stops(trial: Trial) -> None:
    """SIGTERM is enough."""
    start = time.monotonic()
    ran([*trial.compose, "stop"])
    took = time.monotonic() - start
    expect(int(trial.inspect(".State.ExitCode")), 0, f"exit status after a stop of {took:.1f} s")
    expect(took < GRACE_S, True, f"stopped within the grace of {GRACE_S} s")


def lets_in_by_key(trial: Trial) -> None:
    """With keys nobody asks anything without one, and everybody what his role allows; what is changed counts at once."""
    made = ran([*trial.compose, "run", "--rm", "-T", "hearth", "hearth", "keys", "add", "me", "--role", "admin"], **KEYED)
    key = made.stdout.split()[-1]
    trial = trial.up(**KEYED)
    becomes_healthy(trial)

    def status(key: str = "", path: str = "/finetune", body: bytes | None = None) -> int:
        return trial.say(path, body, key=key)[0]

    def keys(*words: str) -> str:
        return ran([*trial.docker, "exec", trial.container, "hearth", "keys", *words]).stdout

    expect(status(path="/embed/text", body=TEXT), 401, "POST /embed/text without a key, status")
    expect(status(key, "/embed/text", TEXT), 200, "with the key that was made before the start")
    expect(status(key), 200, "GET /finetune with it")
    guest = keys("add", "guest").split()[-1]
    until("a key that was made meanwhile is known", lambda: status(guest, "/embed/text", TEXT) == 200, 10)
    expect(status(guest), 403, "GET /finetune with a key for asking models alone")
    keys("revoke", "me")
    until("a revoked key is nobody's", lambda: status(key) == 401, 10)
    said = ran([*trial.compose, "logs"])
    kept = trial.inside("print(open('/data/keys.jsonl').read())").stdout
    expect([one for one in (key, guest) if one in said.stdout + said.stderr + kept], [], "keys in the log, or in their file")


def main() -> int:
    """Exit 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docker", default="docker", help="the command that talks to the engine")
    parser.add_argument("--compose", default="docker compose", help="the same for compose, with -f FILE for overlays")
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('HEARTH_PORT') or 8000}", help="the published port")
    wanted = parser.parse_args()
    docker, compose = shlex.split(wanted.docker), shlex.split(wanted.compose)
    for command in (docker, compose):
        if shutil.which(command[0]) is None:
            parser.error(f"{command[0]} is not installed; name another command: make container-test COMPOSE=docker-compose")
    try:
        ran([*compose, "down", "--volumes"])  # what a trial that was killed has left
        trial = Trial(docker, compose, wanted.url).up()
        for step in (is_healthy, answers, is_confined, keeps_others_out, is_recovering, stops, lets_in_by_key):
            print(f"{step.__name__.replace('_', ' ')}:", flush=True)
            step(trial)
    except Surprise as surprise:
        print(f"\n{surprise}\n", file=sys.stderr)
        print(ran([*compose, "logs", "--tail", "50"], check=False).stdout, file=sys.stderr)
        return 1
    finally:
        ran([*compose, "down", "--volumes"], check=False)
    print("all as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
