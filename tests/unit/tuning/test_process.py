"""What a job's owner is told when its training ends badly. Real errors where a CPU can have them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.exc import OperationalError

from app.errors import ModelFailed
from app.tuning.process import attempt, save, why
from app.tuning.store import Store


def raised(work: Callable[[], Any]) -> Exception:
    try:
        work()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def full(folder: Path, name: str) -> Path:
    """A file on a disk that is full."""
    path = folder / name
    path.symlink_to("/dev/full")
    return path


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before_and_frees_the_room(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint.pt"
    save({"step": 1}, checkpoint)
    beside = full(tmp_path, ".checkpoint.pt.part")
    error = raised(lambda: save({"weights": torch.zeros(1 << 20)}, checkpoint))
    assert "the disk is full; make room in HEARTH_HOME, then resume" in why(error)
    assert torch.load(checkpoint, weights_only=True) == {"step": 1} and not beside.is_symlink()


def test_other_writers_tell_of_a_full_disk_in_their_own_words(tmp_path: Path):
    # What SQLite and the Rust of safetensors say where Python has OSError.
    for words in ("(sqlite3.OperationalError) database or disk is full", 'IoError(Os { message: "No space left on device" })'):
        assert "the disk is full" in why(RuntimeError(words))
    assert "the disk is full" in why(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert "the disk is full" in why(raised(lambda: full(tmp_path, "x").write_bytes(b"x" * (1 << 20))))


def test_memory_that_is_not_there_is_told_with_what_to_do():
    assert "not enough memory; ask again with half the batch_size" in why(raised(lambda: torch.empty(1 << 60)))
    assert "not enough memory" in why(raised(lambda: bytearray(1 << 60)))
    assert "not enough memory" in why(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert "not enough GPU memory" in why(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert "not enough GPU memory" in why(RuntimeError("CUDA error: out of memory"))


def test_a_loss_that_is_no_number_says_what_helps_and_all_else_where_to_look():
    assert "lower learning_rate" in why(ModelFailed("the loss became nan at step 3; lower learning_rate, or set clip_norm = 1.0"))
    assert why(KeyError("x")) == "training raised KeyError; the job's log has the details"


def test_a_job_that_fails_says_why(store: Store, tmp_path: Path):
    store.add("a1", {"name": "x", "base": "y"})

    def work() -> None:
        torch.empty(1 << 60)

    assert attempt(work, store, "a1", tmp_path) == 1
    failed = store.get("a1")
    assert failed.state == "failed" and "half the batch_size" in failed.reason


@pytest.mark.parametrize("part", ["data", ".prepared.part", "model"])
def test_a_disk_that_fills_while_data_is_unpacked_decoded_or_a_model_written_is_told(small_disk: Path, part: str):
    store = Store(f"sqlite:///{small_disk / 'jobs.db'}")
    store.add("a1", {"name": "x", "base": "y"})

    def work() -> None:
        (small_disk / part / "deep").mkdir(parents=True)
        (small_disk / part / "deep" / "file").write_bytes(bytes(16 << 20))

    assert attempt(work, store, "a1", small_disk) == 1
    failed = store.get("a1")
    assert (failed.state, failed.reason) == ("failed", "the disk is full; make room in HEARTH_HOME, then resume the job")
    assert not (small_disk / part).exists()
    store.close()


def test_a_database_that_is_away_is_no_fault_of_the_job(store: Store, tmp_path: Path):
    store.add("a1", {"name": "x", "base": "y"})

    def work() -> None:
        raise OperationalError("UPDATE", {}, Exception("the connection is lost"))

    assert attempt(work, store, "a1", tmp_path) == 1, "which the foreman takes for a death, and starts another"
    assert store.get("a1").state == "validating"
