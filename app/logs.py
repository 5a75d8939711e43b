"""Log lines: one event a line, for people (`text`) or machines (`json`), to standard error."""

from __future__ import annotations

import codecs
import json
import logging
import sys
import time
from contextvars import ContextVar

from app.settings import Settings

log = logging.getLogger("hearth")
request_id: ContextVar[str] = ContextVar("request_id", default="")
codecs.lookup("unicode_escape")  # a module of Python's: when it is needed there may be no descriptor to read it by


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        tag = f" [{request_id.get()}]" if request_id.get() else ""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower():8}{tag} {_visible(record.getMessage())}"
        more = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([line, *(f"  {_visible(one)}" for one in more)])


def _visible(text: str) -> str:
    """Without what could begin a line of its own or command a terminal: callers choose paths, names and parts of errors."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        if request_id.get():
            words["request_id"] = request_id.get()
        if record.exc_info:
            words["exception"] = self.formatException(record.exc_info)
        return json.dumps(words)


def configure(settings: Settings) -> None:
    """Set up this process's log. Called once per process, by its entry."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log == "json" else _Text())
    log.handlers[:] = [handler]
    log.setLevel(settings.log_level.upper())
    log.propagate = False
    served = logging.getLogger("uvicorn")  # its complaints come in our shape, its chatter not at all
    served.handlers[:] = [handler]
    served.setLevel(logging.WARNING)
    served.propagate = False
