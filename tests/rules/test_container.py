"""Dockerfile and compose files keep what README and the design promise of the container. Builds nothing; `make container-test` does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings
from tests.rules.source import ROOT
from tests.rules.test_lock import LOCK, PLACES, PROJECT, pins

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(word, rest) of each one in order, lines joined, comments gone."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    found = (line.split(None, 1) for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, rest in found]


def last_stage(dockerfile: str) -> list[tuple[str, str]]:
    """What the image is made of: the instructions from the last FROM on."""
    whole = instructions(dockerfile)
    return whole[max(n for n, (word, _) in enumerate(whole) if word == "FROM") :]


def told(dockerfile: str, word: str) -> str:
    """What the last instruction of this name in the image says; empty if there is none."""
    return next((rest for name, rest in reversed(last_stage(dockerfile)) if name == word), "")


def environment(dockerfile: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in told(dockerfile, "ENV").split())


def broken(dockerfile: str) -> list[str]:
    """The promises that a Dockerfile breaks."""
    parts = instructions(dockerfile)
    stages = [rest.split() for word, rest in parts if word == "FROM"]
    named = {words[2] for words in stages if len(words) == 3}
    arguments = dict(rest.split("=", 1) for word, rest in parts if word == "ARG" and "=" in rest)
    bases = {arguments.get(words[0].strip("${}"), words[0]) for words in stages} - named
    installs = [one for word, rest in parts if word == "RUN" for one in rest.split("&&") if "pip install" in one]
    promises = {
        "an ordinary user, by number": re.fullmatch(r"[1-9]\d*:[1-9]\d*", told(dockerfile, "USER")),
        "a health check": re.search(r"CMD .*healthcheck\.py", told(dockerfile, "HEALTHCHECK")),
        "one plain base, for CPU and CUDA": all(base.startswith("python:3.") for base in bases),
        "several stages": len(stages) > 1,
        "packages from the lock, by hash": any("-r /build/requirements.lock" in one for one in installs)
        and all("--no-deps" in one and ("--require-hashes" in one or "--no-index" in one) for one in installs),
        "a volume for weights": told(dockerfile, "VOLUME") == environment(dockerfile).get("HEARTH_HOME"),
        "no shell between Docker's signal and the server": told(dockerfile, "CMD") == '["hearth", "serve"]',
    }
    return [promise for promise, kept in promises.items() if not kept]


def only_for_development(lock: str) -> set[str]:
    """What the lock installs on Linux that nothing of `dependencies` or the other extras draws in; it says what draws in what."""
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["openvino"],
        *project["optional-dependencies"]["postgres"],
    ]
    needed = {canonicalize_name(Requirement(one).name) for one in wanted}
    installed = {pin.name for pin in pins(lock) if pin.holds(PLACES[0])}
    parts = re.findall(r"^([a-z0-9][\w.-]*)==.*\n(?: .*\n)*", lock, re.MULTILINE)
    bodies = dict(zip(parts, re.split(r"^[a-z0-9][\w.-]*==", lock, flags=re.MULTILINE)[1:], strict=True))
    drawn = {name: set(re.findall(r"# +(?:via )?([a-z0-9][\w.-]*)$", body, re.MULTILINE)) for name, body in bodies.items()}
    while more := {name for name, by in drawn.items() if by & needed} - needed:
        needed |= more
    return installed - needed


def test_the_image_has_nothing_that_only_development_needs() -> None:
    (rest,) = re.findall(r"pip uninstall -y -q (.*)", "\n".join(rest for _, rest in instructions(DOCKERFILE)))
    removed = set(rest.split())
    assert {"pytest", "werkzeug", "hypothesis"} <= only_for_development(LOCK)
    assert removed == only_for_development(LOCK)


def let_in(ignored: str) -> set[str]:
    return {line[1:] for line in ignored.splitlines() if line.startswith("!")}


def test_the_dockerfile_keeps_its_promises() -> None:
    assert broken(DOCKERFILE) == []
    known = environment(DOCKERFILE)
    assert known["HEARTH_PORT"] == told(DOCKERFILE, "EXPOSE") == "8000"
    assert known["HEARTH_HOST"] == "0.0.0.0"
    assert known["HEARTH_HOME"] == "/data"


@pytest.mark.parametrize(
    ("old", "new", "promise"),
    [
        ("USER 10001:10001", "USER root", "an ordinary user, by number"),
        ("USER 10001:10001", "USER 0:0", "an ordinary user, by number"),
        ("USER 10001:10001", "", "an ordinary user, by number"),
        ("HEALTHCHECK --interval=10s", "LABEL x=1", "a health check"),
        ("ARG BASE=python:3.11-slim-bookworm", "ARG BASE=nvidia/cuda:12.8.0-runtime", "one plain base, for CPU and CUDA"),
        ("--no-deps --require-hashes", "--no-deps", "packages from the lock, by hash"),
        ("-r /build/requirements.lock", "torch", "packages from the lock, by hash"),
        ("VOLUME /data", "VOLUME /weights", "a volume for weights"),
        ('CMD ["hearth", "serve"]', "CMD hearth serve", "no shell between Docker's signal and the server"),
    ],
)
def test_the_rule_sees_a_broken_promise(old: str, new: str, promise: str) -> None:
    assert old in DOCKERFILE
    assert promise in broken(DOCKERFILE.replace(old, new))


def test_what_is_copied_is_there_and_let_in() -> None:
    copied = [rest for word, rest in instructions(DOCKERFILE) if word == "COPY" and "--from=" not in rest]
    sources = {source for rest in copied for source in rest.split()[:-1]}
    assert sources
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {source.split("/")[0] for source in sources} <= let_in((ROOT / ".dockerignore").read_text())


def service(path: str) -> dict[str, Any]:
    """The one service of a compose file."""
    services: dict[str, Any] = compose(path)["services"]
    assert set(services) == {"hearth"}
    found: dict[str, Any] = services["hearth"]
    return found


def compose(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return found


def test_compose_publishes_the_port_keeps_a_volume_and_leaves_the_root_alone() -> None:
    hearth = service("docker-compose.yml")
    assert hearth["ports"] == ["${HEARTH_PORT:-8000}:8000"]
    volume, place = hearth["volumes"][0].split(":")
    assert volume in compose("docker-compose.yml")["volumes"]
    assert place == environment(DOCKERFILE)["HEARTH_HOME"]
    assert hearth["read_only"] is True
    assert [mount.split(":")[0] for mount in hearth["tmpfs"]] == ["/tmp"]
    assert "exec" in hearth["tmpfs"][0].split(","), "compiled kernels are loaded from there"
    assert hearth["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in hearth["security_opt"]
    assert "user" not in hearth, "the image's own"


def test_compose_waits_longer_than_the_server_drains() -> None:
    assert int(service("docker-compose.yml")["stop_grace_period"].removesuffix("s")) > Settings().drain_s


def test_compose_sets_only_settings_that_there_are() -> None:
    known = {f"HEARTH_{name.upper()}" for name in Settings.model_fields}
    assert set(service("docker-compose.yml")["environment"]) <= known


def test_the_gpu_overlay_adds_the_devices_and_nothing_else() -> None:
    overlay = service("docker/compose.gpu.yml")
    assert set(overlay) == {"deploy"}, "the same image"
    (device,) = overlay["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
