"""A worker begins with what was compiled before, if it still says what the module said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.card import About, Card, ModuleSource
from app.engine import kept as kept_module
from app.engine.compute import Compute
from app.engine.kept import kept
from app.engine.order import Choice, Order
from tests.unit.engine.test_choosing import Toy

META = {"dimensions": 2}


@pytest.fixture
def order(tmp_path: Path) -> Order:
    card = Card(
        name="toy",
        folder=tmp_path,
        task="text-embedding",
        source=ModuleSource(kind="module", entry="T"),
        about=About(licence="x"),
    )
    return Order(card.model_dump_json(), {}, 2, "auto", "auto", str(tmp_path))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the compiled network gives; its calls are noted."""
    calls: list[Any] = []

    def network(x: Any) -> Any:
        calls.append(x)
        return np.concatenate([x, 2 * x], 1)

    def read(engine: Any, precision: Any, folder: Path, names: Any, threads: int, *, classifies: bool) -> Compute:
        assert not classifies
        return Compute(engine, precision, dict.fromkeys(names, network))

    monkeypatch.setattr(kept_module, "compiled", read)
    return calls


def samples(meta: dict[str, Any]) -> list[Any]:
    assert meta == META
    return [{"x": np.array(3.0)}]


def write(order: Order, said: list[float], engine: str = "openvino") -> Path:
    folder = order.folder()
    folder.mkdir(parents=True)
    np.savez(folder / "proof.npz", **{"0.embedding": np.array(said, np.float32)})
    (folder / "module.json").write_bytes(msgspec.json.encode({"networks": ["net"], "meta": META}))
    (folder / "choice.json").write_bytes(msgspec.json.encode(Choice(engine, "bf16", "fastest", {})))
    return folder


def test_it_is_taken_after_it_has_computed_the_probes(order, compiled):
    write(order, [3.0, 6.0])
    found = kept(order, Toy(), samples)
    assert found is not None
    assert (found.choice.engine, found.meta) == ("openvino", META)
    assert len(compiled) == 1


def test_what_decides_for_it_is_proven_too(order, compiled, monkeypatch):
    write(order, [3.0, 6.0])
    monkeypatch.setattr(
        kept_module, "compiled", lambda *_, **__: Compute("openvino", "bf16", {"net": right}, exact={"net": wrong})
    )
    assert kept(order, Toy(), samples) is None


def right(x: Any) -> Any:
    return np.concatenate([x, 2 * x], 1)


def wrong(x: Any) -> Any:
    return -right(x)


def test_without_a_choice_there_is_nothing(order, compiled):
    assert kept(order, Toy(), samples) is None


def test_a_choice_of_eager_needs_the_module(order, compiled):
    folder = write(order, [3.0, 6.0], engine="eager")
    assert kept(order, Toy(), samples) is None
    assert (folder / "choice.json").exists()


def test_what_says_something_else_is_made_anew(order, compiled):
    folder = write(order, [3.0, -6.0])
    assert kept(order, Toy(), samples) is None
    assert not (folder / "choice.json").exists()


def test_what_is_not_all_there_is_made_anew(order, compiled):
    folder = write(order, [3.0, 6.0])
    (folder / "module.json").unlink()
    assert kept(order, Toy(), samples) is None
    assert not (folder / "choice.json").exists()


def test_in_a_home_that_cannot_be_written_to_eager_begins(order, compiled, monkeypatch):
    write(order, [3.0, -6.0])

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert kept(order, Toy(), samples) is None


def test_what_cannot_be_read_is_made_anew(order, compiled):
    folder = write(order, [3.0, 6.0])
    (folder / "proof.npz").write_bytes(b"torn")
    assert kept(order, Toy(), samples) is None
    assert not (folder / "choice.json").exists()
