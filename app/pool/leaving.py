"""The supervisor's question before it frees a model's workers: which frontends still hold a request for it.

Who was let in may still be reading its recording when nobody new finds the model any more; a worker that ended then would cost it
its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from app.pool.house import House
from app.wire.messages import Leave

_HEIR = ""  # whoever takes over what a frontend held that has ended
_TAKEN_S = 1.0  # by then it has; a tenth is usual

_ids = count(1)  # two that ask about the same model do not take each other's answers


@dataclass(frozen=True, slots=True)
class _Question:
    id: int
    waits_for: set[str]
    """Frontends that have yet to answer, and `_HEIR`."""
    then: Callable[[], None]
    timer: asyncio.TimerHandle | None


class Leaving:
    """Questions that are open, one for each key."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._open: dict[str, _Question] = {}

    def ask(self, key: str, then: Callable[[], None], within_s: float | None = None) -> None:
        """Do `then` when no frontend holds a request for `key` any more, or after so many seconds; without a limit, what a
        killed frontend held is not waited for. All have heard already that nothing new goes there.
        """
        self.forget(key)
        frontends = set(self._house.frontends)
        if not frontends:
            then()
            return
        timer = None if within_s is None else asyncio.get_running_loop().call_later(within_s, self._over, key)
        question = self._open[key] = _Question(next(_ids), frontends, then, timer)
        for frontend in sorted(frontends):
            self._house.tell(Leave(question.id, key), to=frontend)

    def forget(self, key: str) -> None:
        """It is not freed, or is already."""
        if (question := self._open.pop(key, None)) and question.timer:
            question.timer.cancel()

    def left(self, frontend: str, leave: Leave) -> None:
        """It holds no request any more for what it was asked about."""
        question = self._open.get(leave.key)
        if question and question.id == leave.id:
            self._without(frontend, leave.key)

    def gone(self, frontend: str) -> None:
        """It has ended; its requests have an heir."""
        for key in list(self._open):
            question = self._open.get(key)  # what is freed may be waited for by a change, which ends such questions
            if question and question.timer and frontend in question.waits_for:
                question.waits_for.add(_HEIR)
            if question:
                self._without(frontend, key)

    def came(self, frontend: str) -> None:
        """A new one, which may be an heir."""
        for key, question in self._open.items():
            if _HEIR in question.waits_for:
                asyncio.get_running_loop().call_later(_TAKEN_S, self._ask_heir, key, question, frontend)

    def _ask_heir(self, key: str, question: _Question, frontend: str) -> None:
        if self._open.get(key) is question and frontend in self._house.frontends:
            question.waits_for.discard(_HEIR)
            question.waits_for.add(frontend)
            self._house.tell(Leave(question.id, key), to=frontend)

    def _without(self, frontend: str, key: str) -> None:
        question = self._open[key]
        question.waits_for.discard(frontend)
        if not question.waits_for:
            self._over(key)

    def _over(self, key: str) -> None:
        then = self._open[key].then
        self.forget(key)
        then()
