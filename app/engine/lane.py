"""How a batch gets to what computes it and back, and how one knows that it is back. Here for OpenVINO: NumPy's arrays.

PyTorch's own lanes, and so everything that is CUDA's, are in `engine/torch_lane.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from app.engine import device
from app.engine.compute import Compute
from app.tasks.base import Arrays, Batch


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
    """The CPU's, without torch."""

    depth = 1
    """Batches that may be under way together."""

    def mode(self) -> AbstractContextManager[object]:
        """What everything else here, and `Program.forward`, happens in."""
        return nullcontext()

    def pinned(self, arrays: Arrays) -> Batch:
        """The batch in memory that the device can read by itself."""
        return arrays

    def there(self, batch: Batch) -> Batch:
        """The batch on the device, for what is launched from now on. Both must live until a later mark has passed."""
        return batch

    def back(self, results: Batch) -> Batch:
        """The results in the CPU's memory, once a later mark has passed."""
        return results

    def arrays(self, results: Batch) -> Arrays:
        """What came back, when that mark has passed."""
        return results

    def mark(self) -> Mark:
        """Behind all that was launched so far."""
        return Past()

    def no_memory(self, error: Exception) -> bool:
        """It failed for want of memory: fewer samples at once may do."""
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error)

    def broken(self, error: Exception) -> bool:
        """Whatever this process computes from now on will fail, too."""
        return False

    def make_room(self) -> None:
        """Give back what was kept for later."""
        device.give_back()

    def held(self) -> int:
        """Bytes that this process has of the device's memory, with what is kept for later."""
        return device.held_bytes()

    def watch(self) -> bool:
        """Begin to count `peak` anew. False where only what is kept can be told."""
        return device.watch_peak()

    def peak(self) -> int:
        """The most bytes that it had since `watch`: what a batch freed at its end may be given back at once."""
        return device.peak_bytes()

    def free(self) -> int:
        """Bytes that it may still take."""
        return device.free_bytes()


def lane_of(compute: Compute) -> Lane:
    """The lane to what computes."""
    if compute.engine == "openvino":
        return Lane()
    from app.engine.torch_lane import CudaLane, TorchLane

    return CudaLane(compute.device) if compute.device.startswith("cuda") else TorchLane()
