"""The kernel's own counts of what was read from a connection and written to it (tcp(7), TCP_INFO). For Linux."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import NamedTuple

_INFO = struct.Struct("=B119xQQ")  # of struct tcp_info: tcpi_state, tcpi_bytes_acked, tcpi_bytes_received
_ESTABLISHED = 1


class Seen(NamedTuple):
    """What the kernel says of a connection."""

    alive: bool
    read: int
    written: int

    @classmethod
    def of(cls, connection: socket.socket) -> Seen:
        """Look. Raises OSError where there is no connection."""
        state, acked, received = _info(connection)
        while True:
            queued, unread = (_ask(connection, what) for what in (termios.TIOCOUTQ, termios.FIONREAD))
            before, (state, acked, received) = (state, acked, received), _info(connection)
            if before == (state, acked, received):  # nothing moved meanwhile
                return cls(state == _ESTABLISHED, received - unread, acked + queued)


def _info(connection: socket.socket) -> tuple[int, int, int]:
    return _INFO.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))


def _ask(connection: socket.socket, what: int) -> int:
    return int.from_bytes(fcntl.ioctl(connection, what, bytes(4)), sys.byteorder)
