"""Lower precision without a compiler: taken where it agrees, and told why where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from app.engine.eagerly import lowered
from tests.unit.engine.test_choosing import Toy


class Half(Toy):
    """Follows the dtype of its network, as programs do."""

    def forward(self, networks: Any, batch: Any) -> Any:
        found = networks["net"](batch["x"][:, None].to(networks["net"].weight.dtype))
        return {"embedding": found.float()}


class Fickle(Half):
    """Turns its answer round in bf16."""

    def forward(self, networks: Any, batch: Any) -> Any:
        sign = -1 if networks["net"].weight.dtype == torch.bfloat16 else 1
        return {"embedding": sign * super().forward(networks, batch)["embedding"]}


SAMPLES = [{"x": np.array(2.0)}]


def test_bf16_is_taken_where_it_agrees():
    compute, choice = lowered(Half(), torch.nn.Linear(1, 4).requires_grad_(False), SAMPLES, "cpu")
    assert (compute.precision, choice.precision, choice.why) == ("bf16", "bf16", "agrees with fp32")


def test_where_there_are_classes_the_module_decides_what_is_close():
    class Classes(Half):
        def forward(self, networks: Any, batch: Any) -> Any:
            return {"scores": super().forward(networks, batch)["embedding"].softmax(1)}

        def split(self, outputs: Any, samples: Any) -> Any:
            return [{"scores": row} for row in outputs["scores"]]

    module = torch.nn.Linear(1, 4).requires_grad_(False)
    compute, choice = lowered(Classes(), module, SAMPLES, "cpu")
    assert (compute.precision, choice.close_calls) == ("bf16", "fp32")
    assert compute.exact == {"net": module} and module.weight.dtype == torch.float32


def test_fp32_stays_where_it_does_not():
    compute, choice = lowered(Fickle(), torch.nn.Linear(1, 4).requires_grad_(False), SAMPLES, "cpu")
    assert compute.precision == choice.precision == "fp32"
    assert "cosine -" in choice.why
