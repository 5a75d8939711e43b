"""A decoder's whole life: read a file, answer with its samples or the caller's error, wait for the next. Trusted with nothing."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from app.decoding.letters import answer, ordered
from app.errors import HearthError, TooLarge
from app.patience import is_scarce
from app.tasks import make_reader
from app.tasks.base import Decoded
from app.wire.messages import Failed, Message
from app.wire.parcels import Parcel, ParcelStream, Told

OURS = "internal"  # the code of what should not have been raised; its detail is a traceback
UNREAD = os.EX_TEMPFAIL
"""Exit status of a decoder that had no room to begin, or to answer: what it was to read had no part in that."""

_LEAST_S = 2.0
_TOO_DEAR = "to read it takes more memory than one file may have; send a smaller one, or convert it to another format"


def live(stream: socket.socket) -> None:
    """Decode what comes until the frontend goes."""
    parcels = ParcelStream(stream)
    with suppress(EOFError):
        while told := parcels.read():
            parcel = _parcel(told)
            del told  # it may have megabytes, and the next one may be long in coming
            parcels.send(parcel)
            parcel.close()
            del parcel
    if parcels.scarce:
        os._exit(UNREAD)


def _parcel(told: Told) -> Parcel:
    try:
        return Parcel(answer(_decoded(*told)))
    except HearthError as error:
        failed = Failed(0, error.code, error.detail)
    except OSError as error:
        if is_scarce(error):  # no descriptor for the memory of its answer
            os._exit(UNREAD)
        failed = Failed(0, OURS, traceback.format_exc())
    except MemoryError:
        failed = Failed(0, TooLarge.code, _TOO_DEAR)
    except Exception:  # noqa: BLE001  the frontend logs it
        failed = Failed(0, OURS, traceback.format_exc())
    return Parcel((failed, {}))


def _decoded(message: Message, arrays: Mapping[str, np.ndarray]) -> Decoded:
    recipe, item = ordered(message, arrays)
    reader = make_reader(recipe)
    # Of the processor, so that a busy machine refuses nothing. SIGPROF ends this process, whatever its native code is at.
    signal.setitimer(signal.ITIMER_PROF, _LEAST_S + recipe.limit * reader.seconds_each)
    try:
        return reader.decode(item)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
