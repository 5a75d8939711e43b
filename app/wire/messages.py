"""Every message between processes, one struct each. The protocol can be read here alone.

    frontend → worker       Run, Cancel
    worker → frontend       Done, Failed
    child → supervisor      Hello, Ready, LoadFailed, Change, Switch, Back, Leave, Tune, Adopt
    supervisor → child      Table, Died, Changed, Leave, Stop
    whoever connects        Named
    frontend → decoder      Decode
    decoder → frontend      Samples, Failed

Times are on `time.monotonic()`'s clock, which all processes of one machine share.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class Run(Struct, tag="run", frozen=True, array_like=True):
    """Run one sample; its arrays go with it."""

    id: int
    cost: float
    deadline: float
    outputs: tuple[str, ...]
    alone: bool = False
    """It was running in two deaths: nothing else may share its batch."""
    before: int = 0
    """Samples of the same request that come before it."""


class Cancel(Struct, tag="cancel", frozen=True, array_like=True):
    """The caller left: drop this sample if it still waits."""

    id: int


class Done(Struct, tag="done", frozen=True, array_like=True):
    """One sample's answer; the outputs that were asked for go with it."""

    id: int
    queue_s: float
    run_s: float
    batch: int
    pace_s: float
    """What each sample of its batch took of the worker's time, with everything between two batches."""


class Failed(Struct, tag="failed", frozen=True, array_like=True):
    """One sample's failure; `code` as in `app/errors.py`."""

    id: int
    code: str
    detail: str


class Named(Struct, tag="named", frozen=True, array_like=True):
    """The first word of whoever connects; the endpoint keeps it for itself."""

    name: str


class Hello(Struct, tag="hello", frozen=True, array_like=True):
    """A child's first word to the supervisor."""

    role: Literal["worker", "frontend"]
    pid: int


class Ready(Struct, tag="ready", frozen=True, array_like=True):
    """A worker has loaded its model and run the card's sample."""

    meta: dict[str, Any]


class LoadFailed(Struct, tag="load_failed", frozen=True, array_like=True):
    """A worker could not load its model; it exits after this."""

    why: str


class Change(Struct, tag="change", frozen=True, array_like=True):
    """A frontend asks to load or unload a model."""

    id: int
    model: str
    verb: Literal["load", "unload"]


class Switch(Struct, tag="switch", frozen=True, array_like=True):
    """A frontend asks to share a model's traffic anew among its versions."""

    id: int
    model: str
    shares: dict[str, float]
    """By version."""
    shadow: str
    """A version; empty: none."""


class Back(Struct, tag="back", frozen=True, array_like=True):
    """A frontend asks to share a model's traffic as it was before."""

    id: int
    model: str


class Tune(Struct, tag="tune", frozen=True, array_like=True):
    """A frontend has accepted a job: let there be a foreman."""


class Adopt(Struct, tag="adopt", frozen=True, array_like=True):
    """The foreman: a job became this version of a model, whose card lies in the home folder."""

    key: str
    share: float
    """Of the model's traffic, as the job's owner wanted it."""


class Worker(Struct, frozen=True, array_like=True):
    """One worker process in the table. `name` is new for every process, so words from the dead are known as such."""

    name: str
    pid: int
    device: str
    state: Literal["loading", "ready"]
    restarts: int


class Entry(Struct, frozen=True, array_like=True):
    """One model in the table."""

    card: str
    """The card as JSON (`Card.model_dump_json`)."""
    state: Literal["unloaded", "loading", "ready", "failed"]
    why: str
    default: bool
    preload: bool
    files: dict[str, str]
    meta: dict[str, Any]
    workers: tuple[Worker, ...]
    leaving: bool = False
    """It is unloaded, and who is let in may wait for its workers, and for those that were to come."""


class Route(Struct, frozen=True, array_like=True):
    """Who answers for a model: shares of its traffic by key, 1 in all, and the key of a version that runs along unheard."""

    shares: dict[str, float]
    shadow: str = ""


class Table(Struct, tag="table", frozen=True, array_like=True):
    """The supervisor's whole knowledge: replaces what the frontend knew."""

    models: dict[str, Entry]
    frontends: int
    """How many frontends share each model's queue."""
    routes: dict[str, Route] = {}
    """For models that have versions."""
    keys: str | None = None
    """The file of keys (`app/keys.py`), which holds hashes; None where there is none, or it was not read yet."""


class Died(Struct, tag="died", frozen=True, array_like=True):
    """A worker is gone. `running` are the samples of its last batch, if it died in one: the suspects."""

    worker: str
    running: tuple[int, ...]
    stalled: bool = False
    """It was ended because that batch did not."""
    killed: bool = False
    """By somebody (SIGKILL), or by the kernel where memory ran out."""


class Changed(Struct, tag="changed", frozen=True, array_like=True):
    """The answer to `Change`, `Switch` and `Back`: an empty code, or why not."""

    id: int
    code: str = ""
    detail: str = ""


class Leave(Struct, tag="leave", frozen=True, array_like=True):
    """A model is to be freed, or a version without traffic: a frontend sends this back as soon as it holds no request for it."""

    id: int
    key: str


class Stop(Struct, tag="stop", frozen=True, array_like=True):
    """Finish what was accepted, then exit."""


class Decode(Struct, tag="decode", frozen=True, array_like=True):
    """Decode one file, whose bytes go with it. The words are those of `tasks/base.py: Recipe`."""

    task: str
    input: str
    limit: float


class Samples(Struct, tag="samples", frozen=True, array_like=True):
    """What a file was decoded to; the arrays of the samples go with it."""

    costs: tuple[float, ...]
    info: dict[str, Any]


Message = (Run | Cancel | Done | Failed | Hello | Ready | LoadFailed | Table | Died | Stop | Named) | (
    Change | Switch | Back | Changed | Leave | Tune | Adopt | Decode | Samples
)
