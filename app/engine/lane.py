"""How a batch gets to its device and back, and how one knows that it is back. What is CUDA's stays in this file.

On CUDA nothing here waits: copies go from pinned memory on a stream of their own, so that the next batch travels while one
computes, and a mark (an event) says when everything before it is done. On the CPU the same calls do nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch

from app.tasks.base import Batch


class Mark(Protocol):
    """A point in the device's work."""

    def synchronize(self) -> None:
        """Sleep until the device has come past it. Raises what went wrong there."""
        ...


class Past:
    """Of what is done."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Lane:
    """The CPU's."""

    depth = 1
    """Batches that may be under way together."""

    def pinned(self, batch: Batch) -> Batch:
        """The batch in memory that the device can read by itself."""
        return batch

    def there(self, batch: Batch) -> Batch:
        """The batch on the device, for what is launched from now on. Both must live until a later mark has passed."""
        return batch

    def back(self, results: Batch) -> Batch:
        """The results in the CPU's memory, once a later mark has passed."""
        return results

    def mark(self) -> Mark:
        """Behind all that was launched so far."""
        return Past()


class CudaLane(Lane):
    """A GPU's: the next batch is collated, copied and launched while one computes."""

    depth = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, batch: Batch) -> Batch:
        """Blocks come from torch's caching allocator of pinned memory, which asks the driver for few of them."""
        return {name: tensor.pin_memory() for name, tensor in batch.items()}

    def there(self, batch: Batch) -> Batch:
        """Copied on the lane's own stream; what computes waits for the copy on the device, not here."""
        with torch.cuda.stream(self._copies):
            moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        torch.cuda.current_stream(self._device).wait_stream(self._copies)
        return moved

    def back(self, results: Batch) -> Batch:
        """Into pinned memory; what a program made on the CPU stays there."""
        arrived = {}
        for name, tensor in results.items():
            arrived[name] = tensor
            if tensor.device.type != "cpu":
                arrived[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                arrived[name].copy_(tensor, non_blocking=True)
        return arrived

    def mark(self) -> Mark:
        """`blocking`: waiting sleeps, because a spinning worker takes a core from the frontends that decode."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def lane_of(device: torch.device) -> Lane:
    """The lane of a device."""
    return CudaLane(device) if device.type == "cuda" else Lane()
