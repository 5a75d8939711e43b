"""The choice: what counts as the same answer, what is tried, where the result lies, and that it is never half written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from app.card import About, Card, ModuleSource
from app.engine import choosing, order as order_module
from app.engine.agreement import agree, classifies, close, probes
from app.engine.choosing import chosen, make
from app.engine.compute import Compute
from app.engine.order import Choice, Order
from app.errors import ModelFailed

EAGER = Choice("eager", "fp32", "the only one", {"eager fp32": {"alone_ms": 1.0}})


def with_engine(engine: Any) -> Choice:
    return msgspec.structs.replace(EAGER, engine=engine)


def scores(*values: float) -> Any:
    return [{"scores": np.array(values, np.float32)}]


def embedding(*values: float) -> Any:
    return [{"embedding": np.array(values, np.float32)}]


def tokens(*ids: int, score: float = 0.9) -> Any:
    return [{"token_ids": np.array(ids), "token_scores": np.full(len(ids), score, np.float32)}]


class TestAgreement:
    def test_the_same_is_the_same(self):
        for outputs in (scores(0.1, 0.9), embedding(1, 2, 3), tokens(1, 2, 2, 0)):
            assert agree(outputs, outputs) == ""

    def test_probabilities_may_move_a_little(self):
        assert agree(scores(0.10, 0.90), scores(0.11, 0.89)) == ""

    def test_probabilities_that_move_far_differ(self):
        assert agree(scores(0.1, 0.9), scores(0.3, 0.7)) == "scores differ by 0.200"

    def test_another_best_class_differs_though_little_moved(self):
        assert agree(scores(0.47, 0.53), scores(0.51, 0.49)).startswith("scores differ")

    def test_an_embedding_may_change_its_length_but_not_its_direction(self):
        assert agree(embedding(1, 2, 3), embedding(2, 4, 6)) == ""
        assert agree(embedding(1, 0), embedding(1, 0.1)).startswith("cosine 0.99")

    def test_what_is_no_number_agrees_with_nothing(self):
        assert agree(embedding(1, 2), embedding(float("nan"), 2)).startswith("cosine nan")
        assert agree(scores(0.1, 0.9), scores(float("nan"), 0.9)).startswith("scores differ")

    def test_an_embedding_of_zeros_is_no_division_by_zero(self):
        assert agree(embedding(0, 0), embedding(1, 0)) == "cosine 0.00000"

    def test_frames_may_move_but_the_transcript_stays(self):
        assert agree(tokens(1, 1, 0, 2), tokens(1, 0, 0, 2)) == ""
        assert agree(tokens(1, 1, 0, 2), tokens(1, 0, 0, 3)) == "another transcript"

    def test_where_what_is_close_is_decided_no_other_class_will_do(self):
        assert agree(scores(0.51, 0.49), scores(0.49, 0.51)) == ""
        assert agree(scores(0.51, 0.49), scores(0.49, 0.51), decided=True).startswith("scores differ")
        assert agree(scores(0.09, 0.08), scores(0.08, 0.09), decided=True) == "", "nobody takes these for an answer"

    def test_an_error_differs_in_its_own_words(self):
        assert agree(scores(1, 0), [ModelFailed("it broke")]) == "it broke"

    def test_one_that_differs_is_enough(self):
        assert agree([*scores(0.1, 0.9), *scores(0.1, 0.9)], [*scores(0.1, 0.9), *scores(0.9, 0.1)])


class TestClose:
    @pytest.mark.parametrize(
        ("values", "told"), [((0.1, 0.43, 0.47), True), ((0.1, 0.3, 0.6), False), ((0.09, 0.08), False), ((1.0,), False)]
    )
    def test_the_two_best_classes_tell(self, values: tuple[float, ...], told: bool):
        assert close(scores(*values)[0]) is told

    def test_what_has_no_classes_is_not(self):
        assert not close(embedding(1, 1)[0]) and not classifies([*embedding(1), ModelFailed("x")]) and classifies(scores(1))


class TestProbes:
    def test_rows_are_cut_and_pictures_changed(self):
        picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        found = probes([{"pixels": picture}, {"input_ids": np.arange(9)}])
        assert [next(iter(probe.values())).shape for probe in found] == [(2, 4, 3), (9,), (2, 4, 3), (2, 4, 3), (6,)]
        assert (found[2]["pixels"] == picture[::-1]).all()
        assert found[3]["pixels"].dtype == np.uint8

    def test_what_is_short_stays_alone(self):
        assert len(probes([{"input_ids": np.arange(7)}])) == 1


@pytest.fixture
def order(tmp_path: Path) -> Order:
    card = Card(
        name="toy",
        folder=tmp_path,
        task="image-classification",
        source=ModuleSource(kind="module", entry="Toy"),
        about=About(licence="Apache-2.0"),
    )
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    return Order(card.model_dump_json(), {"weights": str(weights)}, 2, "auto", "auto", str(tmp_path / "home"))


class TestPlace:
    def test_the_same_order_has_the_same_place(self, order):
        assert order.folder() == msgspec.structs.replace(order).folder()
        assert order.folder().parent == Path(order.home) / "compute"
        assert order.folder().name.startswith("toy-")

    @pytest.mark.parametrize("change", [{"threads": 1}, {"precision": "fp32"}, {"engine": "inductor"}])
    def test_other_wishes_have_another(self, order, change):
        assert msgspec.structs.replace(order, **change).folder() != order.folder()

    def test_another_card_has_another(self, order):
        card = Card.model_validate_json(order.card).model_copy(update={"input": {"crop": 3}})
        assert msgspec.structs.replace(order, card=card.model_dump_json()).folder() != order.folder()

    def test_other_weights_have_another(self, order):
        before = order.folder()
        Path(order.files["weights"]).write_bytes(b"12")
        longer = order.folder()
        os.utime(order.files["weights"], ns=(1, 1))
        assert len({before, longer, order.folder()}) == 3

    def test_an_edited_network_has_another(self, order, tmp_path):
        before = order.folder()
        (tmp_path / "model.py").write_text("class T: ...")
        assert order.folder() != before

    def test_what_a_card_says_about_itself_changes_nothing(self, order):
        card = Card.model_validate_json(order.card)
        told = card.model_copy(update={"about": About(licence="x", title="another")})
        assert msgspec.structs.replace(order, card=told.model_dump_json()).folder() == order.folder()

    def test_another_library_has_another(self, order, monkeypatch):
        before = order.folder()
        monkeypatch.setattr(order_module, "_version", lambda name: "99")
        assert order.folder() != before


class Trial:
    """Leaves a file, then chooses or fails."""

    outcome: Any = EAGER

    def __init__(self, order: Order, folder: Path) -> None:
        self.folder = folder

    def prove(self, *, compiled: bool) -> None:
        (self.folder / "proof.npz").touch()

    def choose(self) -> Choice:
        (self.folder / "image.xml").touch()
        (self.folder / "image.fp32.pt2").mkdir()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(choosing, "_Trial", Trial)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return lambda outcome: monkeypatch.setattr(Trial, "outcome", outcome)


class TestMaking:
    def test_the_choice_lies_beside_what_it_needs_and_nothing_else(self, order, trial):
        trial(with_engine("openvino"))
        make(order)
        assert {path.name for path in order.folder().iterdir()} == {"choice.json", "image.xml", "proof.npz"}

    def test_eager_needs_nothing(self, order, trial):
        assert make(order) == EAGER
        assert [path.name for path in order.folder().iterdir()] == ["choice.json"]

    def test_the_choice_is_written_last(self, order, trial, monkeypatch):
        seen: list[bool] = []
        tidy = choosing.tidy
        monkeypatch.setattr(
            choosing, "tidy", lambda folder, *rest: (seen.append((folder / "choice.json").exists()), tidy(folder, *rest))
        )
        make(order)
        assert seen == [False]

    def test_what_was_there_half_made_is_replaced(self, order, trial):
        order.folder().mkdir(parents=True)
        (order.folder() / "rest").touch()
        make(order)
        assert [path.name for path in order.folder().iterdir()] == ["choice.json"]

    def test_a_failure_leaves_nothing(self, order, trial):
        trial(RuntimeError("no room"))
        with pytest.raises(RuntimeError, match="no room"):
            make(order)
        assert list((Path(order.home) / "compute").iterdir()) == []


class TestReading:
    def test_a_choice_that_lies_there_is_read_without_a_process(self, order, trial, monkeypatch):
        make(order)
        monkeypatch.setattr(choosing.subprocess, "run", lambda *_, **__: pytest.fail("started a process"))
        assert chosen(order) == EAGER

    def test_else_a_process_makes_it(self, order, trial, monkeypatch):
        def process(command: Any, input: bytes, **_: Any) -> Any:
            make(msgspec.json.decode(input, type=Order))
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(choosing.subprocess, "run", process)
        assert chosen(order) == EAGER

    def test_a_process_that_fails_is_told(self, order, monkeypatch):
        monkeypatch.setattr(choosing.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
        with pytest.raises(ModelFailed, match="status 3"):
            chosen(order)


class Toy:
    """A program of one network."""

    padded = False

    def collate(self, samples: Any) -> Any:
        return {"x": np.array([float(sample["x"]) for sample in samples], np.float32)}

    def networks(self, module: Any) -> Any:
        return {"net": module}

    def forward(self, networks: Any, batch: Any) -> Any:
        return {"embedding": networks["net"](batch["x"][:, None])}

    def split(self, outputs: Any, samples: Any) -> Any:
        return [{"embedding": row} for row in outputs["embedding"]]

    def describe(self, module: Any) -> Any:
        return {}


class TestCandidates:
    @pytest.fixture
    def trial(self, order, monkeypatch, tmp_path) -> Any:
        """What is tried with an engine wished, on a machine that has `openvino` or not."""
        monkeypatch.setattr(choosing, "load", lambda *_: torch.nn.Linear(1, 1))
        monkeypatch.setattr(choosing, "resolve", lambda _: lambda *_: Toy())
        monkeypatch.setattr(choosing, "make_codec", lambda *_: None)
        monkeypatch.setattr(choosing, "card_samples", lambda *_: [SimpleNamespace(arrays={"x": np.array(3.0)})])
        monkeypatch.setattr(choosing, "inductor_precisions", lambda: ("bf16", "fp32"))
        monkeypatch.setattr(choosing.warnings, "simplefilter", lambda *_: None)

        def tried(engine: str, *, openvino: bool, precision: str = "auto") -> Any:
            monkeypatch.setattr(choosing, "openvino_precisions", lambda: ("bf16", "fp32") if openvino else ())
            return choosing._Trial(msgspec.structs.replace(order, engine=engine, precision=precision), tmp_path)

        return tried

    def test_inductor_is_tried_where_openvino_is_not(self, trial):
        assert {engine for engine, _ in trial("auto", openvino=False).candidates()} == {"eager", "inductor"}
        assert {engine for engine, _ in trial("auto", openvino=True).candidates()} == {"eager", "openvino"}

    def test_inductor_alone_is_tried_where_it_is_wished(self, trial):
        assert list(trial("inductor", openvino=True).candidates()) == [("inductor", "bf16"), ("inductor", "fp32")]
        assert list(trial("inductor", openvino=True, precision="fp32").candidates()) == [("inductor", "fp32")]

    def test_without_a_compiler_eager_is_left(self, trial, monkeypatch):
        monkeypatch.setattr(choosing, "inductor_precisions", lambda: ())
        assert list(trial("inductor", openvino=True).candidates()) == [("eager", "fp32")]

    def test_a_compiler_that_fails_is_told_and_not_used(self, trial, monkeypatch):
        def fail(*_: Any) -> None:
            raise RuntimeError("an operator without a kernel")

        monkeypatch.setattr(choosing, "compile_into", fail)
        choice = trial("inductor", openvino=False).choose()
        assert (choice.engine, choice.precision) == ("eager", "fp32")
        assert choice.measured["inductor fp32"] == {"differs": "RuntimeError: an operator without a kernel"}
        assert "alone_ms" in choice.measured["eager fp32"]

    def test_one_that_says_something_else_is_told_and_not_used(self, trial, monkeypatch):
        def other(engine: Any, precision: Any, *_: Any, **__: Any) -> Compute:
            return Compute(engine, precision, {"net": lambda x: -torch.ones_like(x)})

        monkeypatch.setattr(choosing, "compile_into", lambda *_: None)
        monkeypatch.setattr(choosing, "compiled", other)
        wanted = trial("inductor", openvino=False, precision="fp32")
        wanted._expected = [{"embedding": np.array([1.0], np.float32)}]
        assert wanted.choose().measured["inductor fp32"] == {"differs": "cosine -1.00000"}

    @pytest.mark.parametrize(("seconds", "taken"), [(1.05, "openvino"), (1.2, "eager")])
    def test_a_tenth_is_not_worth_a_worker_with_torch(self, trial, monkeypatch, seconds, taken):
        one, order = trial("auto", openvino=True, precision="fp32"), list[str]()

        def measured(compute: Compute, samples: Any, threads: int) -> float:
            order.append(f"{compute.engine} {len(samples)}")
            return seconds if compute.engine == "openvino" else 1.0

        same = {"net": lambda x: one._reference.networks["net"](torch.from_numpy(x)).detach().numpy()}
        monkeypatch.setattr(one, "_openvino", lambda *_: Compute("openvino", "fp32", same))
        monkeypatch.setattr(one, "_seconds", measured)
        assert one.choose().engine == taken
        there, back = order[:4], order[4:8]
        assert [each.split()[0] for each in back] == [each.split()[0] for each in reversed(there)], (
            "nobody comes always after eager"
        )
        assert [each.split()[1] for each in there] == ["8", "1", "8", "1"], "one sample finds its weights in the cache"

    def test_inductor_compiles_what_decides_once(self, trial, monkeypatch):
        """Where there are classes, fp32 is needed beside bf16, and is a candidate itself."""
        made, read = list[str](), list[Any]()

        def other(engine: Any, precision: Any, *_: Any, **options: Any) -> Compute:
            read.append((precision, options))
            return Compute(engine, precision, {"net": lambda x: x})

        monkeypatch.setattr(choosing, "record", lambda *_: {})
        monkeypatch.setattr(choosing, "compile_into", lambda folder, engine, networks, calls, precision: made.append(precision))
        monkeypatch.setattr(choosing, "compiled", other)
        for scored in (True, False):
            made.clear()
            one = trial("inductor", openvino=False)
            one._scored = scored
            half, full = one.candidates().values()
            half()
            assert made == (["bf16", "fp32"] if scored else ["bf16"])
            full()
            assert made == ["bf16", "fp32"]
            assert read[-2:] == [("bf16", {"classifies": scored}), ("fp32", {"classifies": scored})]


def test_sweeping_removes_halves_and_what_was_not_used_for_longest(tmp_path):
    def made(name: str, day: int) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "choice.json").touch()
        os.utime(tmp_path / name / "choice.json", (day, day))
        return tmp_path / name

    (tmp_path / ".toy-0.12.part").mkdir()
    (tmp_path / ".toy-0.12.part" / "image.bin").touch()
    old, *rest = [made(f"toy-{'0' * 15}{n}", n + 1) for n in range(5)]
    other = made(f"toy-too-{'0' * 16}", 0)
    choosing.sweep(tmp_path, "toy")
    assert not (tmp_path / ".toy-0.12.part").exists()
    assert not old.exists()
    assert other.exists(), "another model's"
    assert [path.exists() for path in rest] == [False, True, True, True], "with the one that is about to be made: four"
