"""Before a model's workers are freed: which frontends still hold a request for it.

Who was let in may still be reading its recording when nobody new finds the model any more; a worker that ended then would cost it
its answer. `Leaving` asks, in the supervisor; `Held` answers, in a frontend.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from app.pool.house import House
from app.wire.messages import Leave

_LOOK_S = 0.2
_TAKEN_S = 1.0  # after a frontend has come or gone, all of those before it have been taken over: a tenth is usual

_ids = count(1)  # two that ask about the same model do not take each other's answers


@dataclass(slots=True)
class _Question:
    then: Callable[[], None]
    over: asyncio.TimerHandle | None
    """When it is answered without an answer."""
    id: int = 0
    waits_for: set[str] = field(default_factory=set)
    """Frontends that have yet to answer."""
    again: asyncio.TimerHandle | None = None


class Leaving:
    """Questions that are open, one for each key."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._open: dict[str, _Question] = {}
        self._changed = -math.inf  # when a frontend last came or went

    def ask(self, key: str, then: Callable[[], None], within_s: float | None = None) -> None:
        """Do `then` when no frontend holds a request for `key` any more, or after so many seconds. All have heard already that
        nothing new goes there. Without a limit, what a killed frontend held is not waited for.
        """
        self.forget(key)
        over = None if within_s is None else asyncio.get_running_loop().call_later(within_s, self._over, key)
        self._open[key] = _Question(then, over)
        self._ask(key)

    def _ask(self, key: str) -> None:
        """All there are; while some are yet to come, or may be about to take over what another one held, a little later."""
        question, loop = self._open[key], asyncio.get_running_loop()
        if question.again:
            question.again.cancel()
        question.id, question.waits_for, question.again = next(_ids), set(self._house.frontends), None
        wait_s = self._changed + _TAKEN_S - loop.time()
        if len(question.waits_for) < self._house.expected:
            wait_s = _TAKEN_S
        if question.over and wait_s > 0:
            question.again = loop.call_later(wait_s, self._ask, key)
        elif not question.waits_for:
            self._over(key)
        else:
            for frontend in sorted(question.waits_for):
                self._house.tell(Leave(question.id, key), to=frontend)

    def forget(self, key: str) -> None:
        """It is not freed, or is already."""
        if question := self._open.pop(key, None):
            for timer in filter(None, (question.over, question.again)):
                timer.cancel()

    def left(self, frontend: str, leave: Leave) -> None:
        """It holds no request any more for what it was asked about."""
        question = self._open.get(leave.key)
        if question and question.id == leave.id and not question.again:
            self._without(frontend, leave.key, question)

    def came(self) -> None:
        """A frontend, perhaps the heir of another."""
        self._changed = asyncio.get_running_loop().time()
        for key in list(self._open):
            question = self._open.get(key)  # what is freed may be waited for by a change, which ends such questions
            if question and question.over:
                self._ask(key)

    def gone(self, frontend: str) -> None:
        """It has ended, and with it what it held, unless that has an heir."""
        self.came()
        for key in list(self._open):
            question = self._open.get(key)
            if question and not question.over:
                self._without(frontend, key, question)

    def _without(self, frontend: str, key: str, question: _Question) -> None:
        question.waits_for.discard(frontend)
        if not question.waits_for:
            self._over(key)

    def _over(self, key: str) -> None:
        then = self._open[key].then
        self.forget(key)
        then()


class Held:
    """What a frontend is asked for and still holds."""

    def __init__(self, holds: Callable[[str], bool], answer: Callable[[Leave], None]) -> None:
        self._holds = holds
        self._answer = answer
        self._asked: dict[str, list[Leave]] = {}  # by model; of some nobody waits for the answer any more

    def asked(self, leave: Leave) -> None:
        """Answer as soon as it holds no request for that model."""
        if leave.key in self._asked:
            self._asked[leave.key].append(leave)
        else:
            self._asked[leave.key] = [leave]
            self._look(leave.key)

    def _look(self, key: str) -> None:
        if self._holds(key):
            asyncio.get_running_loop().call_later(_LOOK_S, self._look, key)
        else:
            for leave in self._asked.pop(key):
                self._answer(leave)
