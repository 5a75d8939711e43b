"""Has any package that requirements.lock pins a known vulnerability? Asks OSV (osv.dev), which collects them for PyPI too.

    python .ci/audit.py [--url URL]

Exit 1 if one has, but for those that `[tool.hearth.audit]` of pyproject.toml accepts with a reason. What is known changes every
day, so without a network nothing true can be said: that is told, loudly, and is no failure. Standard library only; pip-audit asks
the same service and would add two dozen packages to the lock.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
URL = "https://api.osv.dev"
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[.*?\])?==([^\s;\\]+)", re.MULTILINE)
IN_BETWEEN = (403, 407, 429)  # what proxies and overload answer
AT_ONCE = 1000  # what the service takes


def pinned(lock: str) -> list[tuple[str, str]]:
    """Name and version of each package; one may have several versions, by platform."""
    return sorted(set(PIN.findall(lock)))


def ask(url: str, packages: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Package → the ids of what is known of it, where there is something. Raises OSError if nobody answers."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(f"{url}/v1/querybatch", body, {"Content-Type": "application/json"})  # noqa: S310  as given
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  as given
        results = json.load(answer)["results"]
    return {
        package: [one["id"] for one in result["vulns"]]
        for package, result in zip(packages, results, strict=True)
        if result.get("vulns")
    }


def main() -> int:
    """0 if nothing is known that is not accepted, or nothing could be asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=URL, help="the service")
    url = parser.parse_args().url
    packages = pinned((ROOT / "requirements.lock").read_text())
    accepted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hearth"]["audit"]
    known: dict[tuple[str, str], list[str]] = {}
    try:
        for start in range(0, len(packages), AT_ONCE):
            known |= ask(url, packages[start : start + AT_ONCE])
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in IN_BETWEEN:
            raise  # it was reached, and did not understand us
        print(f"NOT AUDITED: {url} gave no answer ({error}); run make check where there is a network", file=sys.stderr)
        return 0
    bad = {package: news for package, ids in known.items() if (news := [id for id in ids if id not in accepted])}
    for (name, version), ids in bad.items():
        print(f"{name} {version}: {', '.join(f'https://osv.dev/{id}' for id in ids)}", file=sys.stderr)
    print(f"{len(packages)} packages asked about, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
