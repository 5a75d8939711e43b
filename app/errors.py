"""Every way a request can fail, as exceptions that carry meaning. Knows no HTTP: `web/problems.py` maps codes to statuses.

    HearthError
    ├── the caller's   BadInput · UnknownModel · UnknownJob · Conflict · TooLarge · UnsupportedMedia · Invalid · Unauthorised ·
    │                  Forbidden · RateLimited · RequestTimeout
    ├── busy           TooBusy · Loading · Deadline · Unavailable
    └── ours           ModelFailed · Poisoned · OutOfMemory · WorkerLost

`detail` is read by the caller: it names what was wrong, the limit and the remedy, never a traceback or a path of ours.
"""

from __future__ import annotations

from typing import ClassVar


class HearthError(Exception):
    """Base of all expected failures; `code` is part of the public API."""

    code: ClassVar[str] = "model_failed"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class BadInput(HearthError):
    """The bytes are not what they claim to be (a truncated JPEG, an empty body)."""

    code = "bad_input"


class Unauthorised(HearthError):
    """The call needs a key, and came without one that is known."""

    code = "unauthorised"


class Forbidden(HearthError):
    """The call needs rights that the caller lacks."""

    code = "forbidden"


class RateLimited(HearthError):
    """The caller asks more often, or holds more of a queue, than it may; `retry_after_s` says when it may again."""

    code = "rate_limited"


class UnknownModel(HearthError):
    """No card has this name."""

    code = "unknown_model"


class UnknownJob(HearthError):
    """No job has this id."""

    code = "unknown_job"


class RequestTimeout(HearthError):
    """The rest of the request did not come in time."""

    code = "request_timeout"


class Conflict(HearthError):
    """The model's or job's state, or the model's task, does not allow this call."""

    code = "conflict"


class TooLarge(HearthError):
    """A limit on size, pixels, seconds, tokens or count is exceeded."""

    code = "too_large"


class UnsupportedMedia(HearthError):
    """The media type is one that this endpoint does not read."""

    code = "unsupported_media"


class Invalid(HearthError):
    """Well-formed, but a field has the wrong name, type or value."""

    code = "invalid"


class TooBusy(HearthError):
    """The queue is full, or the machine; `retry_after_s` says when there should be room."""

    code = "too_busy"


class Loading(HearthError):
    """The model is not ready to answer yet, or not loaded."""

    code = "loading"


class Deadline(HearthError):
    """The deadline passed before the answer was ready."""

    code = "deadline"


class Unavailable(HearthError):
    """What the call needs beside us is away: the database of jobs, or room on the disk for it."""

    code = "unavailable"


class ModelFailed(HearthError):
    """The model raised, or gave an output of the wrong shape."""

    code = "model_failed"


class Poisoned(HearthError):
    """This input, run alone, killed its worker."""

    code = "poisoned"


class OutOfMemory(HearthError):
    """The device's memory does not suffice for this input even when it runs alone."""

    code = "out_of_memory"


class WorkerLost(HearthError):
    """The worker died and no replacement came in time."""

    code = "worker_lost"


class ClientLeft(Exception):
    """Nobody waits for the answer any more. No error of anybody's, hence outside the tree."""


ERRORS: dict[str, type[HearthError]] = {
    error.code: error
    for error in (
        BadInput,
        Unauthorised,
        Forbidden,
        RateLimited,
        UnknownModel,
        UnknownJob,
        RequestTimeout,
        Conflict,
        TooLarge,
        UnsupportedMedia,
        Invalid,
        TooBusy,
        Loading,
        Deadline,
        Unavailable,
        ModelFailed,
        Poisoned,
        OutOfMemory,
        WorkerLost,
    )
}


def from_code(code: str, detail: str) -> HearthError:
    """Rebuild the error that another process named by `code`; an unknown code becomes `ModelFailed`."""
    return ERRORS.get(code, ModelFailed)(detail)
