"""Jobs and their events, in a database: SQLite in `$HEARTH_HOME` by default, PostgreSQL by URL. No torch.

Every change is one transaction. A job's state only goes forward (`STATES`), whoever writes: a tuner that was cancelled cannot
declare itself running again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Column, Engine, Float, Integer, MetaData, String, Table, create_engine, event, select
from sqlalchemy.exc import DBAPIError

from app.errors import Conflict, UnknownJob
from app.settings import jobs_folder
from app.tuning.job import OPEN, Event, Job, State

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

    def add(self, id: str, spec: dict[str, Any]) -> Job:
        """A new job, `validating`. Its data is in its folder already."""
        now = time.time()
        row = {"id": id, "model": spec["name"], "state": "validating", "created": now, "updated": now, "spec": spec}
        with self._engine.begin() as connection:
            connection.execute(_jobs.insert().values(**row))
            connection.execute(_events.insert().values(job=id, kind="state", at=now, data={"state": "validating"}))
        return self.get(id)

    def get(self, id: str) -> Job:
        """Raises UnknownJob."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_jobs).where(_jobs.c.id == id)).mappings().first()
        if row is None:
            raise UnknownJob(f"there is no job {id!r}; GET /finetune lists them")
        return Job(**row)

    def all(self, states: Sequence[State] = (), limit: int = 1000) -> list[Job]:
        """Newest first; those in `states`, if any are named."""
        query = select(_jobs).order_by(_jobs.c.created.desc(), _jobs.c.id).limit(limit)
        if states:
            query = query.where(_jobs.c.state.in_(states))
        with self._engine.connect() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def move(self, id: str, to: State, *, only_from: Sequence[State] = OPEN, reason: str = "", **values: Any) -> bool:
        """Change the state, if it is one of `only_from`; False if it is not (any more)."""
        now = time.time()
        change = _jobs.update().where(_jobs.c.id == id, _jobs.c.state.in_(only_from))
        with self._engine.begin() as connection:
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
        job = self.get(id)
        if job.state in OPEN:
            raise Conflict(f"job {id} is {job.state}; cancel it first: POST /finetune/{id}/cancel")
        with self._engine.begin() as connection:
            connection.execute(_events.delete().where(_events.c.job == id))
            connection.execute(_jobs.delete().where(_jobs.c.id == id))

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()


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
