"""requirements.lock: complete, portable, and inside the ranges of pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rules.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
# What only the MiniLM package and OpenVINO ask for, and nobody imports.
ABSENT = {"openvino-telemetry", "sentence-transformers", "scikit-learn", "scipy", "joblib", "threadpoolctl"}
PLACES = [
    {"python_version": python, "python_full_version": python + ".5", "sys_platform": system, "platform_machine": machine,
     "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system], "implementation_name": "cpython",
     "platform_python_implementation": "CPython", "os_name": "posix", "extra": ""}
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]  # fmt: skip


@dataclass(frozen=True)
class Pin:
    name: str
    version: str
    marker: Marker | None
    hashes: int

    def holds(self, place: dict[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(place)


def pins(lock: str) -> list[Pin]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in lock.splitlines() if not line.lstrip().startswith("#")))
    found = []
    for line in filter(str.strip, joined.splitlines()):
        requirement = Requirement(re.sub(r"--hash=\S+", "", line).strip())
        specifiers = [str(one) for one in requirement.specifier]
        assert len(specifiers) == 1, f"not pinned to one version: {line[:80]}"
        assert specifiers[0].startswith("=="), f"not pinned to one version: {line[:80]}"
        hashes = line.count("--hash=sha256:")
        found.append(Pin(canonicalize_name(requirement.name), specifiers[0][2:], requirement.marker, hashes))
    return found


def direct() -> list[Requirement]:
    """What the project asks for, with every extra."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(one) for one in chain(PROJECT["project"]["dependencies"], *extras)]


def unmet(lock: str, requirements: Iterable[Requirement], place: dict[str, str]) -> list[str]:
    """Direct dependencies that the lock lacks, has twice, or has outside their range, on one kind of machine."""
    here = [pin for pin in pins(lock) if pin.holds(place)]
    found = []
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate(place):
            continue
        versions = [pin.version for pin in here if pin.name == canonicalize_name(requirement.name)]
        if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
            found.append(f"{requirement}: locked {versions}")
    return found


@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p['python_version']}-{p['sys_platform']}-{p['platform_machine']}")
def test_every_direct_dependency_is_locked_inside_its_range(place: dict[str, str]) -> None:
    assert unmet(LOCK, direct(), place) == []
    names = [pin.name for pin in pins(LOCK) if pin.holds(place)]
    assert len(names) == len(set(names)), "a package is locked twice"


def test_the_lock_names_no_place() -> None:
    """No URL, index, file or folder: it must install from whatever registry the machine uses."""
    assert places_named(LOCK) == []


def places_named(lock: str) -> list[str]:
    return [line for line in lock.splitlines() if re.search(r"://|\bfile:|^\s*-(?!-hash=)| @ |(?<!\w)/", line)]


def test_every_pin_has_hashes_and_no_local_version() -> None:
    assert [pin for pin in pins(LOCK) if pin.hashes == 0 or "+" in pin.version] == []


def test_what_nobody_imports_is_left_out() -> None:
    assert ABSENT & {pin.name for pin in pins(LOCK)} == set()


def test_ranges_are_wide_enough() -> None:
    oldest = {"torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.17.0"}
    ranges = {requirement.name: requirement.specifier for requirement in direct()}
    assert [name for name, version in oldest.items() if not ranges[name].contains(version)] == []
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"


GOOD = "numpy==2.4.6 \\\n    --hash=sha256:00\n    # via hearth\n"


def test_the_rule_sees_offenders() -> None:
    wanted = [Requirement("numpy>=2")]
    assert unmet(GOOD, wanted, PLACES[0]) == []
    assert unmet(GOOD.replace("2.4.6", "1.26.0"), wanted, PLACES[0]) == ["numpy>=2: locked ['1.26.0']"]
    assert unmet("", wanted, PLACES[0]) == ["numpy>=2: locked []"]
    assert unmet(GOOD.replace(" \\", " ; sys_platform == 'win32' \\", 1), wanted, PLACES[0]) == ["numpy>=2: locked []"]
    with pytest.raises(AssertionError, match="not pinned"):
        pins("numpy>=2\n")


@pytest.mark.parametrize("line", ["--find-links here", "-e .", "x @ file:x.whl", "x @ https://example.org/x.whl", "/srv/x.whl"])
def test_the_rule_sees_a_place(line: str) -> None:
    assert places_named(GOOD + line) == [line]
    assert places_named(GOOD) == []
