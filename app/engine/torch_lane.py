"""PyTorch's lanes. What is CUDA's stays in this file.

On CUDA nothing here waits: copies go from pinned memory on a stream of their own, so that the next batch travels while one
computes, and a mark (an event) says when everything before it is done. On the CPU the same calls do nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from app.engine.lane import Lane, Mark
from app.tasks.base import Arrays, Batch


class TorchLane(Lane):
    """The CPU's: tensors and arrays share their memory."""

    def mode(self) -> AbstractContextManager[object]:
        """No gradients."""
        return torch.inference_mode()

    def pinned(self, arrays: Arrays) -> Batch:
        """As tensors."""
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def arrays(self, results: Batch) -> Arrays:
        """As arrays."""
        return {name: tensor.numpy() for name, tensor in results.items()}

    def no_memory(self, error: Exception) -> bool:
        """PyTorch's allocators for CUDA, for pinned memory and for the CPU, and cuBLAS's."""
        words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
        return super().no_memory(error) or isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)

    def broken(self, error: Exception) -> bool:
        """After a CUDA error other than memory every later call fails too (CUDA runtime API, cudaErrorAssert and its kin)."""
        return isinstance(error, torch.AcceleratorError) and not self.no_memory(error)

    def make_room(self) -> None:
        """Of the caching allocator's blocks."""
        torch.cuda.empty_cache()


class CudaLane(TorchLane):
    """A GPU's: the next batch is collated, copied and launched while one computes."""

    depth = 2

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def pinned(self, arrays: Arrays) -> Batch:
        """Blocks come from torch's caching allocator of pinned memory, which asks the driver for few of them."""
        return {name: tensor.pin_memory() for name, tensor in super().pinned(arrays).items()}

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

    def held(self) -> int:
        """With what the caching allocator keeps."""
        return torch.cuda.memory_reserved(self._device)

    def watch(self) -> bool:
        """What a batch took the caching allocator keeps."""
        return True

    peak = held

    def free(self) -> int:
        """Of the whole device, which others may use, too."""
        return torch.cuda.mem_get_info(self._device)[0]

    def mark(self) -> Mark:
        """`blocking`: waiting sleeps, because a spinning worker takes a core from the frontends that decode."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
