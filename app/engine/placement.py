"""Models × devices → workers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def place(replicas: int, devices: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Devices for `replicas` new workers, the emptiest first; `taken` are the devices of the workers that run.

    On the CPU every replica shares the one device.
    """
    load = Counter(dict.fromkeys(devices, 0))
    load.update(device for device in taken if device in load)
    chosen = []
    for _ in range(replicas):
        device = min(devices, key=lambda name: load[name])
        load[device] += 1
        chosen.append(device)
    return chosen
