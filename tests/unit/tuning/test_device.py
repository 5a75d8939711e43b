"""Where a run computes."""

from __future__ import annotations

import torch

from app.tuning.device import accelerator, described, memory, versions

CPU = torch.device("cpu")


def test_a_machine_without_cuda_computes_on_its_cpu_and_says_which():
    device = accelerator().device
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    told = described(CPU)
    assert told["device"] == "cpu" and told["device_name"]
    assert memory(CPU)["memory_bytes"] > 1 << 20


def test_versions_name_all_that_has_a_part_in_the_numbers():
    told = versions()
    assert {"hearth", "python", "torch", "torchvision", "numpy", "transformers", "accelerate"} <= set(told)
    assert told["torch"].split("+")[0] == torch.__version__.split("+")[0]
