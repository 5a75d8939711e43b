"""Threads: as many as help. Memory: what there is, and what may still be taken."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from app.engine import device


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """By number of threads the seconds of a call, on a clock of paper."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def found(seconds: dict[int, float]) -> None:
        def call() -> None:
            clock.now += seconds[torch.get_num_threads()]

        device.spare_threads(call)

    return found


def test_a_quick_model_that_gains_little_gets_one_thread(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.001, 2: 0.001})
    assert torch.get_num_threads() == 1


def test_a_quick_model_that_gains_keeps_them(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.004, 2: 0.001})
    assert torch.get_num_threads() == 2


def test_a_slow_model_keeps_them_untried(taking: Callable[[dict[int, float]], None]):
    taking({1: 0.02, 2: 0.0})
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("version", ["2", "1"])
def test_a_container_may_take_what_files_have_but_not_what_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
):
    _, limit, used, every = dict(zip("21", device._CGROUPS, strict=True))[version]
    (tmp_path / limit).write_text("100000\n")
    (tmp_path / used).write_text("70000\n")
    counts = {"file": 60000, "shmem": 20000, "inactive_file": 30000, "active_file": 10000}
    (tmp_path / "memory.stat").write_text("".join(f"{every}{name} {count}\n" for name, count in counts.items()))
    monkeypatch.setattr(device, "_CGROUPS", ((tmp_path, limit, used, every),))
    assert device.free_bytes() == 100000 - 70000 + 40000
    assert device.memory_bytes() == 100000


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, limit, used, every = device._CGROUPS[0]
    (tmp_path / limit).write_text("max\n")
    (tmp_path / used).write_text("70000\n")
    monkeypatch.setattr(device, "_CGROUPS", ((tmp_path, limit, used, every),))
    assert device.memory_bytes() == psutil.virtual_memory().total + psutil.swap_memory().total
    assert device.free_bytes() > 70000


@pytest.mark.skipif(sys.platform != "linux", reason="reads smaps")
def test_pages_of_files_are_let_go_and_read_again_when_they_are_needed(tmp_path: Path):
    def resident(path: Path) -> int:
        sizes, counts = list[int](), False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                counts = line.endswith(str(path))
            elif counts and line.startswith("Rss:"):
                sizes.append(int(line.split()[1]))
        return sum(sizes)

    (tmp_path / "of a model").mkdir()
    read, written, elsewhere = (tmp_path / name for name in ("of a model/read", "of a model/written", "elsewhere"))
    maps = []
    for path, access in ((read, mmap.ACCESS_READ), (written, mmap.ACCESS_COPY), (elsewhere, mmap.ACCESS_READ)):
        path.write_bytes(bytes(range(256)) * 4096)
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=access))
        assert bytes(maps[-1]) == bytes(range(256)) * 4096 and resident(path) == 1024
    maps[1][0] = 7
    place = ctypes.addressof(ctypes.c_char.from_buffer(maps[1]))  # as the linker leaves what it has relocated
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(place), ctypes.c_size_t(1 << 20), mmap.PROT_READ) == 0
    device.forget_files(tmp_path / "of a model")
    assert (resident(read), resident(written), resident(elsewhere)) == (0, 1024, 1024)
    assert bytes(maps[0]) == bytes(range(256)) * 4096 and maps[1][0] == 7
