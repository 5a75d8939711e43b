"""Waiting for what this machine has none of just now: a descriptor, room for a process."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeGuard, TypeVar, overload

from app.errors import TooBusy

T = TypeVar("T")

SCARCE = (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS)
"""Errors that say so. The third is of descriptors that are on their way to another process (unix(7))."""

PAUSE_S = 0.1
TIMES = 30  # three seconds: who is told sooner that nothing goes comes back sooner, and finds the same


def is_scarce(error: BaseException) -> TypeGuard[OSError]:
    """Whether it says that there is too little of something now."""
    return isinstance(error, OSError) and error.errno in SCARCE


@overload
async def patiently(work: Callable[[], Awaitable[T]], until: float = ...) -> T: ...
@overload
async def patiently(work: Callable[[], T], until: float = ...) -> T: ...
async def patiently(work: Callable[[], Any], until: float = math.inf) -> Any:
    """What `work` returns, tried again for some seconds, and not beyond `until` (`time.monotonic`), where there is too little for
    it. Raises TooBusy after that.
    """
    for _ in range(TIMES):
        try:
            done = work()
            return await done if isawaitable(done) else done
        except OSError as error:
            if not is_scarce(error):
                raise
            why = os.strerror(error.errno or 0)
        if time.monotonic() + PAUSE_S > until:
            break
        await asyncio.sleep(PAUSE_S)
    raise too_little(why)


def too_little(why: str) -> TooBusy:
    """What is told whose patience was in vain."""
    return TooBusy(f"the server has no room to begin this ({why}); come back in a second", retry_after_s=1.0)
