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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes that nobody else writes to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of Debian's PostgreSQL, on a socket of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or shutil.which("su") is None:
        pytest.skip("PostgreSQL is not installed here")
    pytest.importorskip("psycopg")
    bin, folder = found[-1].parent, tmp_path_factory.mktemp("pg")
    folder.chmod(0o777)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o711)

    def as_postgres(command: str) -> None:
        subprocess.run(["su", "postgres", "-s", "/bin/sh", "-c", command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    as_postgres(f"{bin}/initdb -D {folder}/data -A trust -U postgres")
    as_postgres(f"{bin}/pg_ctl -D {folder}/data -w -l {folder}/log -o '-k {folder} -c listen_addresses=' start")
    yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    as_postgres(f"{bin}/pg_ctl -D {folder}/data -m immediate stop")
