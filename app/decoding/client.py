"""How a frontend has files decoded: each alone in a process of its own, which may die or be killed and costs only its file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import math
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from app.decoding import nursery
from app.decoding.decoder import OURS, UNREAD
from app.decoding.letters import answered, order
from app.decoding.link import Decoder, Died
from app.errors import BadInput, HearthError, OutOfMemory, from_code
from app.logs import log
from app.patience import PAUSE_S, TIMES, patiently, too_little
from app.process import ending
from app.settings import Settings
from app.tasks.base import Codec, Decoded
from app.wire.messages import Failed, Message, Samples
from app.wire.parcels import Parcel, Told

T = TypeVar("T")

_QUICK = 2 << 20  # bytes: to pack so many takes a millisecond, and others wait meanwhile
_AGAIN_S = 0.5  # after which a nursery is begun that there was no room for
_GRACE_S = 0.5  # for whom nobody waits any more: most are done by then, and to fork another one takes 10 ms
# How a decoder ended: it took too long, which a good file's does not, and would again; somebody from outside killed it, or the
# kernel where memory ran out; it had no descriptor, or no memory, to begin or to answer.
_HOW = {-signal.SIGPROF: "slow", -signal.SIGKILL: "killed", UNREAD: "unread"}
# So often, and it is given up. The first crash may have been prepared by the file before it.
_MOST = {"slow": 1, "crashed": 2, "killed": 10, "unread": TIMES}
_PER_PIXEL = 24  # bytes
_PER_SECOND = 16_000 * 4 * 5  # bytes
_BESIDE = 128 << 20  # bytes


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds that took."""
    started = time.monotonic()
    return work(), time.monotonic() - started


class Threads:
    """Decodes in threads of this process: what is safe with any bytes, and everything where no other process is wanted."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix="decode")

    async def decode(self, codec: Codec, item: Any, options: Mapping[str, Any]) -> tuple[Decoded, float]:
        """As `codec.decode`; and the seconds that took, without any wait for it."""
        return await self.run(partial(timed, partial(codec.decode, item, **options)))

    async def run(self, work: Callable[[], T]) -> T:
        """In one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Let the threads end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Decoders:
    """Up to `count` decoders with `room` bytes of memory each, forked by the nursery at the other end of `control`."""

    def __init__(self, count: int, room: int, control: socket.socket) -> None:
        self.count = count
        self._room = room
        self._control = control
        self._heard = False
        self._begun = -math.inf
        self._again: asyncio.TimerHandle | None = None
        self._threads = Threads(count)
        self._turns = asyncio.Semaphore(count)
        self._alive: dict[int, Decoder] = {}
        self._idle: list[Decoder] = []
        self._numbers = itertools.count(1)

    async def decode(self, codec: Codec, item: Any, options: Mapping[str, Any]) -> tuple[Decoded, float]:
        """As `Threads.decode`. Raises what `codec.decode` does, BadInput for what ends its decoder, OutOfMemory, TooBusy."""
        if codec.recipe is None:
            return await self._threads.decode(codec, item, options)
        letter = order(codec.recipe, item)
        pack = partial(Parcel, letter)
        parcel = await (patiently(pack) if len(item) < _QUICK else patiently(partial(self._threads.run, pack)))
        try:
            told, took = await self._asked(parcel, len(item))
            return _made_of(*told), took
        finally:
            parcel.close()

    async def _asked(self, parcel: Parcel, size: int) -> tuple[Told, float]:
        """A decoder's answer, and the seconds it took. What ended one is read once more, by a fresh one; more often where it had
        no part in that.
        """
        ends: Counter[str] = Counter()
        while True:
            decoder = await self._take(fresh=any(how != "unread" for how in ends))
            asked, since = decoder.ask(parcel), time.monotonic()
            try:
                return await asked, time.monotonic() - since
            except Died as died:
                log.warning("decoder %d ended (%s) while it read %d bytes", decoder.number, ending(died.status), size)
                del decoder, asked  # they hold what it ended with, and that this frame
                how = "unread" if died.scarce else _HOW.get(died.status, "crashed")
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_later(_GRACE_S, self._end, decoder, asked)
                raise
            ends[how] += 1
            if ends[how] == _MOST[how]:
                raise _verdict(how)
            if how == "unread":
                await asyncio.sleep(PAUSE_S)

    async def _take(self, fresh: bool) -> Decoder:
        """One that does nothing else, when there is a turn. Raises TooBusy where none can be forked for some seconds."""
        await self._turns.acquire()
        try:
            return await patiently(partial(self._idle_or_forked, fresh))
        except BaseException:  # who waits may be cancelled
            self._turns.release()
            raise

    def _idle_or_forked(self, fresh: bool) -> Decoder:
        if self._idle and not fresh:
            return self._idle.pop()  # the last one used: its memory is warm, and the others' may be swapped out
        while True:
            try:
                decoder = self._fork()
            except ConnectionError as error:  # the nursery died, and that was not heard of yet
                self._on_nursery()
                raise _no_nursery() from error
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._idle:
                    raise
                self._idle.pop(0).close()  # with what it had there may be enough: at once, or somebody else takes it
                continue
            if self._idle:
                self._idle.pop(0).close()  # there are never more of them than turns
            return decoder

    def _fork(self) -> Decoder:
        if self._again is not None:
            raise _no_nursery()
        self._hear()
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [nursery.ORDER.pack(nursery.FORK, number, self._room)], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        self._alive[number] = decoder = Decoder(number, ours, self._free)
        return decoder

    def _free(self, decoder: Decoder) -> None:
        self._idle.append(decoder)
        self._turns.release()

    def _gone(self, number: int, status: int) -> None:
        if (decoder := self._alive.pop(number, None)) is None:  # it could not be listened to
            return
        decoder.ended(status)
        if decoder in self._idle:
            self._idle.remove(decoder)
        elif decoder.asked is not None:
            self._turns.release()

    def _end(self, decoder: Decoder, asked: asyncio.Future[Told]) -> None:
        """Kill it if it still works on what nobody waits for."""
        if decoder.asked is asked:
            log.warning("decoder %d is ended: nobody waits any longer for what it reads", decoder.number)
            with contextlib.suppress(OSError):
                self._control.sendall(nursery.ORDER.pack(nursery.KILL, decoder.number, 0))

    def _hear(self) -> None:
        """Listen to the nursery, from the first time that it is needed."""
        if not self._heard:
            asyncio.get_running_loop().add_reader(self._control, self._on_nursery)
            self._heard = True

    def _on_nursery(self) -> None:
        """Read all that it told: of a socket that was reset uvloop says so once, whatever stands before that."""
        told = b""
        try:
            while len(told := self._control.recv(nursery.END.size, socket.MSG_DONTWAIT)) == nursery.END.size:
                self._gone(*nursery.END.unpack(told))
        except BlockingIOError:
            return
        except ConnectionError:  # it died before it had read all orders
            pass
        log.warning("the decoders' nursery died; replacing it")
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._control)
        self._control.close()
        self._heard = False
        lived = time.monotonic() > self._begun + _AGAIN_S
        for number in list(self._alive):  # its children died with it
            self._gone(number, -signal.SIGKILL if lived else UNREAD)
        if lived:
            self._replace()
        else:  # it could hardly begin; nor will the next one, at once
            self._again = loop.call_later(_AGAIN_S, self._replace)

    def _replace(self) -> None:
        """Begin another nursery: as soon as there is room for it."""
        self._again, self._begun = None, time.monotonic()
        try:
            self._control = nursery.spawn()
        except OSError as error:
            log.error("no nursery of decoders can be begun for now: %s", error)
            self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._replace)
        else:
            self._hear()

    def close(self) -> None:
        """Let all of them end."""
        if self._heard:
            asyncio.get_running_loop().remove_reader(self._control)
        if self._again is not None:
            self._again.cancel()
        self._control.close()
        for decoder in self._idle:
            decoder.close()
        self._threads.close()


def _no_nursery() -> OSError:
    return OSError(errno.EAGAIN, "the last nursery of decoders ended, and the next one is yet to come")


def _verdict(how: str) -> HearthError:
    """What is told of a file whose decoders ended so again and again."""
    if how == "slow":
        return BadInput("to read this file takes far longer than a file of its size should; convert it anew")
    if how == "killed":
        return OutOfMemory("the system ended every process that read this file: it may have no memory left; send it later")
    if how == "unread":
        return too_little("no process that reads files can begin")
    return BadInput("this file ends the process that reads it: it is damaged, or was made to do that; convert it anew")


def _made_of(message: Message, arrays: Mapping[str, np.ndarray]) -> Decoded:
    """What the decoder says. Raises the caller's error, or RuntimeError where it was ours."""
    if isinstance(message, Samples):
        return answered(message, arrays)
    if isinstance(message, Failed) and message.code != OURS:
        raise from_code(message.code, message.detail)
    raise RuntimeError(f"in a decoder: {message}")


def decoder_count(cores: int, frontends: int) -> int:
    """How many each frontend has: together one per core, and never only one, which a large picture would hold."""
    return max(2, cores // frontends)


def room_for(settings: Settings) -> int:
    """Bytes that reading the largest file within the limits takes, and some to spare."""
    pixels, seconds = settings.max_pixels_mp * 1e6, settings.max_audio_min * 60
    return int(max(pixels * _PER_PIXEL, seconds * _PER_SECOND) + 2 * settings.max_body_mb * 2**20) + _BESIDE
