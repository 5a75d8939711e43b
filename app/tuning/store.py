"""Jobs and their events, in a database: SQLite in `$HEARTH_HOME` by default, PostgreSQL by URL. No torch.

Every change is one transaction. A job's state only goes forward (`STATES`), whoever writes: a tuner that was cancelled cannot
declare itself running again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from app.errors import Conflict, TooBusy
from app.settings import jobs_folder
from app.tuning.job import DONE, OPEN, Event, Job, State, unknown

_AGAIN_S = 60.0  # after which there may be room for one more job

_meta = MetaData()
_jobs = Table(
    "jobs",
    _meta,
    Column("id", String(16), primary_key=True),
    Column("model", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("report", JSON, nullable=False, default=dict),
    Column("progress", JSON, nullable=False, default=dict),
    Column("result", JSON, nullable=False, default=dict),
)
_events = Table(
    "events",
    _meta,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("job", String(16), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)


class Store:
    """The database. Safe to use from several processes and threads."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        try:
            _meta.create_all(self._engine)
        except DBAPIError:  # another process was making the tables
            _meta.create_all(self._engine)

    @classmethod
    def of(cls, home: Path, url: str = "") -> Store:
        """The one at `url`; without one, SQLite in `home`. One for each place and process."""
        folder = jobs_folder(home)
        folder.mkdir(parents=True, exist_ok=True)
        return _opened(url or f"sqlite:///{folder / 'jobs.db'}")

    def add(self, id: str, spec: dict[str, Any], most: int | None = None) -> Job:
        """A new job, `validating`. Its data is in its folder already. Raises TooBusy if more than `most` were open with it."""
        now = time.time()
        row = {"id": id, "model": spec["name"], "state": "validating", "created": now, "updated": now, "spec": spec}
        with self._bounded(most) as connection:
            connection.execute(_jobs.insert().values(**row))
            connection.execute(_events.insert().values(job=id, kind="state", at=now, data={"state": "validating"}))
        return self.get(id)

    def get(self, id: str) -> Job:
        """Raises UnknownJob."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_jobs).where(_jobs.c.id == id)).mappings().first()
        if row is None:
            raise unknown(id)
        return Job(**row)

    def all(self, states: Sequence[State] = (), limit: int = 1000) -> list[Job]:
        """Newest first; those in `states`, if any are named."""
        query = select(_jobs).order_by(_jobs.c.created.desc(), _jobs.c.id).limit(limit)
        if states:
            query = query.where(_jobs.c.state.in_(states))
        with self._engine.connect() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def move(
        self, id: str, to: State, *, only_from: Sequence[State] = OPEN, reason: str = "", most: int | None = None, **values: Any
    ) -> bool:
        """Change the state, if it is one of `only_from`; False if it is not (any more). Raises TooBusy as `add` does."""
        now = time.time()
        reason = reason.replace("\0", "")  # which PostgreSQL does not keep
        change = _jobs.update().where(_jobs.c.id == id, _jobs.c.state.in_(only_from))
        with self._bounded(most) as connection:
            if not connection.execute(change.values(state=to, reason=reason, updated=now, **values)).rowcount:
                return False
            data = {"state": to} | ({"reason": reason} if reason else {})
            connection.execute(_events.insert().values(job=id, kind="state", at=now, data=data))
        return True

    def note(
        self, id: str, kind: str = "", data: dict[str, Any] | None = None, *, only_in: State = "running", **values: Any
    ) -> bool:
        """Write values of a job, and an event if it has a `kind`. False if it is not in that state (any more)."""
        now = time.time()
        change = _jobs.update().where(_jobs.c.id == id, _jobs.c.state == only_in).values(updated=now, **values)
        with self._engine.begin() as connection:
            alive = bool(connection.execute(change).rowcount)
            if alive and kind:
                connection.execute(_events.insert().values(job=id, kind=kind, at=now, data=data or {}))
        return alive

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """What happened after the event of that number, in order."""
        query = select(_events).where(_events.c.job == id, _events.c.number > after).order_by(_events.c.number).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [Event(row["number"], row["kind"], row["at"], row["data"]) for row in rows]

    def delete(self, id: str) -> None:
        """Raises UnknownJob, and Conflict for a job that is not over."""
        with self._engine.begin() as connection:
            gone = connection.execute(_jobs.delete().where(_jobs.c.id == id, _jobs.c.state.in_(DONE))).rowcount
            if gone:
                connection.execute(_events.delete().where(_events.c.job == id))
        if not gone:
            raise Conflict(f"job {id} is {self.get(id).state}; cancel it first: POST /finetune/{id}/cancel")

    def check_room(self, most: int) -> None:
        """Raise TooBusy if `most` jobs are open already."""
        with self._engine.connect() as connection:
            _check(connection, most)

    @contextmanager
    def _bounded(self, most: int | None) -> Iterator[Connection]:
        """A transaction that is undone if more than `most` jobs are open at its end. SQLite has one writer at a time; elsewhere
        the others have to wait, or two would count the same.
        """
        with self._engine.begin() as connection:
            if most is not None and self._engine.dialect.name != "sqlite":
                connection.execute(text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            yield connection
            if most is not None:
                _check(connection, most, ours=1)

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()


def _check(connection: Connection, most: int, ours: int = 0) -> None:
    others = connection.execute(select(func.count()).where(_jobs.c.state.in_(OPEN))).scalar_one() - ours
    if others >= most:
        raise TooBusy(f"{others} jobs are open, the limit is {most} (HEARTH_MAX_JOBS); come back later", retry_after_s=_AGAIN_S)


@cache
def _opened(url: str) -> Store:
    return Store(url)


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _(connection: Any, _: Any) -> None:
            # Readers do not wait for the writer, writers wait for each other, and a commit survives kill -9 (sqlite.org/wal).
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
                connection.execute(f"PRAGMA {pragma}")

    return engine
