"""In a worker, beside its loop: wait for the choice, make ready what was chosen, let it agree with eager once more."""

from __future__ import annotations

import threading
from pathlib import Path

from app.card import Card
from app.engine.choosing import chosen
from app.engine.compute import Compute
from app.engine.kept import kept, still_agrees
from app.engine.loader import load
from app.engine.modules import as_chosen
from app.engine.order import Choice, Order
from app.errors import ModelFailed
from app.logs import log
from app.tasks.base import Arrays, Program


class Search:
    """A thread that ends with `found`, or with `why` eager fp32 stays. The worker polls `done`.

    It never calls the module that serves: a module is not made for two callers at once. And it holds the interpreter's lock for
    moments only: choosing is another process, and compiled networks are read outside of it.
    """

    def __init__(self, order: Order, program: Program, samples: list[Arrays]) -> None:
        self.found: tuple[Compute | None, Choice] | None = None
        """None for the compute: what serves is the choice."""
        self.why = ""
        self._order = order
        self._program = program
        self._samples = samples
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Nothing more will come."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            choice = chosen(self._order)
            self.found = self._made(choice), choice
        except Exception as error:  # noqa: BLE001  whatever it is, the model goes on as it is
            self.why = f"eager, because the search for something faster failed: {error}"
            log.exception("the search for a faster engine failed; eager fp32 stays")

    def _made(self, choice: Choice) -> Compute | None:
        if (choice.engine, choice.precision) == ("eager", "fp32"):
            return None
        if choice.engine == "eager":
            files = {name: Path(path) for name, path in self._order.files.items()}
            module = load(Card.model_validate_json(self._order.card), files)
            compute = as_chosen(self._program, module, choice.precision, judged=bool(choice.close_calls))
            still_agrees(self._order.folder(), compute, self._program, self._samples)
            return compute
        known = kept(self._order, self._program, lambda _: self._samples)
        if known is None:
            raise ModelFailed("what was compiled cannot be used; the log says why")
        return known.compute
