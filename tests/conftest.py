"""What all tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports app.metrics: prometheus_client decides at import whether several processes write together.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="hearth-test-metrics-"))
for name in [name for name in os.environ if name.startswith("HEARTH_")]:
    del os.environ[name]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/chaos: each fault for longer, and times as they are promised")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """14 MB that nobody else writes to. In the long form of the faults there must be one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", folder]).returncode:
        (pytest.fail if request.config.getoption("--long") else pytest.skip)("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class Postgres:
    """A server of Debian's PostgreSQL, on a socket of its own."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self._bin, self._folder = bin, folder
        self._count = 0
        folder.chmod(0o777)
        self._run(f"initdb -D {folder}/data -A trust -U postgres")

    def _run(self, command: str) -> None:
        as_postgres = ["su", "postgres", "-s", "/bin/sh", "-c", f"{self._bin}/{command}"]
        subprocess.run(as_postgres, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses="
        self._run(f"pg_ctl -D {self._folder}/data -w -l {self._folder}/log -o '{options}' start")

    def stop(self) -> None:
        self._run(f"pg_ctl -D {self._folder}/data -w -m immediate stop")

    def fresh(self) -> str:
        """The URL of a new database."""
        self._count += 1
        self._run(f"createdb -U postgres -h {self._folder} jobs{self._count}")
        return f"postgresql+psycopg://postgres@/jobs{self._count}?host={self._folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or shutil.which("su") is None:
        pytest.skip("PostgreSQL is not installed here")
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="hearth-pg-") as folder:  # pytest's own folders are closed to PostgreSQL's user
        server = Postgres(found[-1].parent, Path(folder))
        server.start()
        yield server
        server.stop()
