"""Somebody who takes in what comes while the owner of some endpoints computes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

from app.wire.sockets import Endpoint

_LONG_S = 0.005  # waking a thread costs a hundredth of it


class Standby:
    """A thread that pumps endpoints while their owner computes (`with standby.during(…):`); both never touch them at once.

    A socket holds two photos, a batch sixty-four: without it, the batch after a long one would be a small one.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._theirs, self._ours = threading.Lock(), threading.Lock()
        self._theirs.acquire()
        self._ours.acquire()
        self._over = True
        self._failed: Exception | None = None
        self._wake, self._woken = socket.socketpair()
        self._poller = select.poll()
        for descriptor in (self._woken.fileno(), *(endpoint.fileno() for endpoint in endpoints)):
            self._poller.register(descriptor, select.POLLIN)
        threading.Thread(target=self._run, name="standby", daemon=True).start()

    def during(self, expected_s: float) -> AbstractContextManager[None]:
        """For a computation that will take about so long. A short one needs no help, unless more was coming than sockets hold."""
        needed = expected_s > _LONG_S or any(endpoint.crowded for endpoint in self._endpoints)
        return self if needed else contextlib.nullcontext()

    def __enter__(self) -> None:
        self._over = False
        self._theirs.release()

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.send(b"\0")
        self._ours.acquire()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        while True:
            self._theirs.acquire()
            try:
                while not self._over:
                    self._poller.poll()
                    for endpoint in self._endpoints:
                        endpoint.pump()
            except Exception as error:  # noqa: BLE001  whose it is: the owner's
                self._failed = error
            self._woken.recv(1)
            self._ours.release()
