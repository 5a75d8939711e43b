"""Whatever computes, the answers are the module's: at batch sizes and lengths that no compiler saw."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.engine import compute, device
from app.engine.compute import Compute, compiled, openvino_precisions, tidy
from app.engine.modules import compile_into, eager, inductor_precisions, record


class Picture(nn.Module):
    """A convolution whose batch norm can be folded, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (pixels.permute(0, 3, 1, 2).float() / 255).to(self.head.weight.dtype)
        seen = self.norm(self.convolution(scaled)).relu().mean((2, 3))
        return self.head(seen).float(), seen.float()


class Both(nn.Module):
    """A picture of fixed size, and rows of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = Picture()
        self.layer = nn.Linear(6, 6)

    def forward(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.picture(pixels), self.layer(rows).relu().float()


class Toy:
    """One network: compiling is slow."""

    padded = False

    def networks(self, module: nn.Module) -> dict[str, nn.Module]:
        return {"both": module}

    def collate(self, samples: Sequence[Any]) -> dict[str, np.ndarray]:
        return {name: np.stack([sample[name] for sample in samples]) for name in ("pixels", "rows")}

    def forward(self, networks: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(("logits", "seen", "rows"), networks["both"](batch["pixels"], batch["rows"]), strict=True))

    def split(self, outputs: Any, samples: Sequence[Any]) -> list[Any]:
        return [{name: array[row] for name, array in outputs.items()} for row in range(len(samples))]

    def describe(self, module: nn.Module) -> dict[str, Any]:
        return {}


def module() -> nn.Module:
    torch.manual_seed(0)
    return Both().eval().requires_grad_(False)


def samples(count: int, length: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(count)
    return [
        {"pixels": rng.integers(0, 256, (8, 9, 3), np.uint8), "rows": rng.normal(size=(length, 6)).astype(np.float32)}
        for _ in range(count)
    ]


def outputs(found: Compute, count: int, length: int, *, transposed: bool = False) -> dict[str, Tensor]:
    batch = {name: torch.from_numpy(array) for name, array in Toy().collate(samples(count, length)).items()}
    if transposed:  # the same values, laid out otherwise
        batch["rows"] = batch["rows"].transpose(1, 2).contiguous().transpose(1, 2)
    if found.engine != "openvino" and found.precision == "bf16":
        batch["rows"] = batch["rows"].bfloat16()
    if found.engine == "openvino":
        arrays = Toy().forward(found.networks, {name: tensor.numpy() for name, tensor in batch.items()})
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        return Toy().forward(found.networks, batch)


def differences(found: Compute, count: int, length: int, *, transposed: bool = False) -> list[float]:
    want = outputs(eager(Toy(), module()), count, length)
    got = outputs(found, count, length, transposed=transposed)
    for name in want:
        assert got[name].shape == want[name].shape
        assert got[name].dtype == want[name].dtype
    return [float((want[name] - got[name]).abs().max()) for name in want]


def plain(precision: Any) -> Compute:
    return eager(Toy(), module(), precision=precision)


def calls(precision: str) -> Any:
    """As recorded from one sample: what is 1 in an example must not stay 1."""
    program = Toy()
    batch = {name: torch.from_numpy(array) for name, array in program.collate(samples(1)).items()}
    rows = batch["rows"].bfloat16() if precision == "bf16" else batch["rows"]
    return {"both": (batch["pixels"], rows)}


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO traces, which PyTorch calls deprecated
        compile_into(folder, "openvino", plain("fp32").networks, calls("fp32"))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def inductor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compute, Any]:
    """The one compilation of these tests, in the precision that does more; it takes some 12 s of one core."""
    if not inductor_precisions():
        pytest.skip("no C++ compiler")
    precision: Any = inductor_precisions()[0]
    folder = tmp_path_factory.mktemp("inductor")
    source = plain(precision)
    compile_into(folder, "inductor", source.networks, calls(precision), precision, device="cpu")  # type: ignore[arg-type]
    return folder, source, precision


SIZES = [(1, 5), (2, 5), (7, 3), (3, 11), (1, 1)]


@pytest.mark.parametrize(("count", "length"), SIZES)
def test_openvino_says_what_the_module_says(openvino, count, length):
    found = compiled("openvino", "fp32", openvino, ["both"], threads=1)
    assert max(differences(found, count, length)) < 1e-5


def test_openvino_in_bf16_says_nearly_the_same(openvino):
    if "bf16" not in openvino_precisions():
        pytest.skip("no bf16 on this processor")
    found = compiled("openvino", "bf16", openvino, ["both"], threads=1)
    assert max(differences(found, 4, 7)) < 0.03


def test_eager_bf16_says_nearly_the_same():
    assert 0 < max(differences(plain("bf16"), 4, 7)) < 0.03


class TestInductor:
    """All in one place and class, so that one process compiles once."""

    def test_it_says_what_the_module_says_at_sizes_that_it_never_saw(self, inductor):
        folder, source, precision = inductor
        found = compiled("inductor", precision, folder, ["both"], threads=1, device="cpu")
        assert (found.engine, found.precision, found.device) == ("inductor", precision, "cpu")
        limit = 0.03 if precision == "bf16" else 1e-5
        for count, length in SIZES:
            assert max(differences(found, count, length)) < limit
        assert max(differences(found, 3, 4, transposed=True)) < limit, "compiled code believes strides without a look"
        assert max(differences(source, 3, 4)) < limit, "compiling leaves the module as it was"

    def test_its_library_stays_as_the_linker_left_it_when_files_are_let_go_of(self, inductor):
        folder, _, precision = inductor
        found = compiled("inductor", precision, folder, ["both"], threads=1)
        before = differences(found, 3, 4)
        device.forget_files(folder)
        assert differences(found, 3, 4) == before, "or this process ends by SIGSEGV"

    def test_another_fixed_size_is_refused_instead_of_read_out_of_bounds(self, inductor):
        folder, source, precision = inductor
        found = compiled("inductor", precision, folder, ["both"], threads=1)
        dtype = source.networks["both"].layer.weight.dtype  # type: ignore[attr-defined]
        for pixels, rows in [((2, 9, 9, 3), (2, 5, 6)), ((2, 8, 9, 3), (2, 5, 7))]:
            with pytest.raises(ValueError, match="compiled for"):
                found.networks["both"](torch.zeros(pixels, dtype=torch.uint8), torch.zeros(rows, dtype=dtype))

    def test_nothing_but_the_packages_is_left(self, inductor):
        folder, _, precision = inductor
        assert sorted(path.name for path in folder.iterdir()) == [f"both.{precision}.pt2"]


def test_without_a_compiler_there_is_no_inductor(monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda _: None)
    assert inductor_precisions() == ()


def test_with_a_compiler_there_is_fp32(monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert inductor_precisions()[-1] == "fp32"


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_is_asked_for_its_own_precisions(monkeypatch, able):
    monkeypatch.setattr(compute.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert inductor_precisions("cuda:1") == (("bf16", "fp32") if able else ("fp32",))


def test_without_openvino_it_offers_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert openvino_precisions() == ()


def test_the_loader_is_told_the_gpu(monkeypatch, tmp_path):
    told: list[Any] = []
    (tmp_path / "net.bf16.pt2").mkdir()
    (tmp_path / "net.bf16.pt2" / "fixed.json").write_text("[[null]]")
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", lambda *arguments: told.extend(arguments))
    found = compiled("inductor", "bf16", tmp_path, ["net"], threads=1, device="cuda:1")
    assert found.device == "cuda:1"
    assert told == [str(tmp_path / "net.bf16.pt2"), "model", True, 1, 1]


def test_recorded_are_the_arguments_of_the_first_call_of_each_network():
    found = record(Toy(), eager(Toy(), module()), samples(3, 4))
    assert {name: [tuple(argument.shape) for argument in arguments] for name, arguments in found.items()} == {
        "both": [(3, 8, 9, 3), (3, 4, 6)],
    }


def test_tidying_leaves_what_was_chosen(tmp_path):
    def left(engine: Any, *precisions: str) -> list[str]:
        for name in ("a.xml", "a.bin", "a.fp32.pt2/x", "a.bf16.pt2/x"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        tidy(tmp_path, engine, *precisions)
        return sorted(path.name for path in tmp_path.iterdir())

    assert left("openvino", "bf16") == ["a.bin", "a.xml"]
    assert left("inductor", "fp32", "") == ["a.fp32.pt2"]
    assert left("inductor", "bf16", "fp32") == ["a.bf16.pt2", "a.fp32.pt2"]
    assert left("eager", "bf16") == []
