"""Jobs: POST /finetune, GET /finetune, /finetune/{id}, …/events, …/log · POST …/cancel, …/resume · DELETE /finetune/{id}."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from app.card import Card, described
from app.errors import BadInput, Conflict, Invalid, TooLarge, UnknownJob, UnknownModel
from app.settings import jobs_folder
from app.tasks import TASKS
from app.tuning.archive import remove
from app.tuning.data import link
from app.tuning.job import DONE, LAST_EVENT, OPEN, Job, is_id, new_id, unknown
from app.tuning.room import is_full
from app.tuning.spec import Spec, one_task, understood
from app.web.answer import reply
from app.web.kitchen import Kitchen
from app.web.plainly import InPlainWords, in_plain_words
from app.web.read import no_query, read_form, wrong_field
from app.web.schemas import EVENTS, JobsAnswer, job_body, problems

if TYPE_CHECKING:
    from app.tuning.store import Store


async def _known(request: Request) -> None:
    """Raise UnknownJob for what cannot be a job's id: databases differ in what they say of that."""
    id = request.path_params.get("id")
    if id is not None and not is_id(id):
        raise unknown(id)


router = APIRouter(
    prefix="/finetune",
    tags=["finetune"],
    dependencies=[Depends(no_query), Depends(_known)],
    route_class=InPlainWords,
    responses=problems(503),
)
_LOOK_S = 0.25  # between two looks for events
_BEAT_S = 10.0  # after which a silent stream says that it lives
_LOG_BYTES = 1 << 20
_SPEC_BYTES = 1 << 16
_AS_FILE = "dataset as a file (curl -F dataset=@photos.zip)"
_NO_EVENTS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.post(
    "",
    status_code=202,
    response_model=Job,
    openapi_extra=job_body(Spec),
    responses=problems(400, 404, 408, 409, 413, 422),
    summary="Tune a model on your data",
)
async def submit(request: Request) -> Response:
    """Multipart: `spec`, JSON, and `dataset`: a zip, a tar, or a table of texts. Checked, queued, run: follow its events."""
    kitchen = _kitchen(request)
    await asyncio.to_thread(lambda: _open(kitchen).check_room(kitchen.settings.max_jobs))  # before all that is received
    try:
        form = await read_form(request, max_files=8)
    except MultiPartException as error:
        raise BadInput(f"the body is no multipart form ({error.message}); send the part spec, and {_AS_FILE}") from error
    try:
        parts = _parts(form)
        spec = _spec(await _text(parts.get("spec")))
        dataset = parts.get("dataset")
        if not isinstance(dataset, UploadFile):
            raise BadInput(f"the part 'dataset' {'is missing' if dataset is None else 'came as text'}; send {_AS_FILE}")
        base = _base(kitchen, spec)
        spec = understood(spec.model_copy(update={"base": base.name}), base.task)
        _free(kitchen, spec)
        job = await asyncio.to_thread(_accept, kitchen, spec, base, dataset)
        request.state.audit |= {"job": job.id, "model": job.model}
    finally:
        await form.close()
    kitchen.pool.tune()
    answer = reply(_told(job))
    answer.status_code = 202
    answer.headers["Location"] = f"/finetune/{job.id}"
    return answer


@router.get("", response_model=JobsAnswer, summary="All jobs, newest first")
async def jobs(request: Request) -> Response:
    """Without their events."""
    return reply({"jobs": [_told(job) for job in await asyncio.to_thread((await _store(request)).all)]})


@router.get("/{id}", response_model=Job, responses=problems(404), summary="One job")
async def job(request: Request, id: str) -> Response:
    """State and reason, what was found in the data, how far it has come, and what it takes to repeat it."""
    return reply(_told(await asyncio.to_thread((await _store(request)).get, id)))


@router.get("/{id}/events", responses=EVENTS | problems(404), summary="Follow a job", response_class=StreamingResponse)
async def events(request: Request, id: str) -> Response:
    """Server-sent events: `state`, `stage` (preparing, training), `progress`; goes on after `Last-Event-ID`.

    It ends when the job does; who then asks for more is answered 204, which ends a browser's EventSource.
    """
    store = await _store(request)
    over = (await asyncio.to_thread(store.get, id)).state in DONE
    last = request.headers.get("last-event-id", "0")
    if not (last.isascii() and last.isdigit() and len(last) < 16 and int(last) <= LAST_EVENT):
        raise Invalid(f"Last-Event-ID is {last!r}; send the number of the last event that you saw")
    if over and not await asyncio.to_thread(store.events, id, int(last), 1):
        return Response(status_code=204)
    stream = _stream(store, _kitchen(request), id, int(last))
    return StreamingResponse(stream, media_type="text/event-stream", headers=_NO_EVENTS)


async def _stream(store: Store, kitchen: Kitchen, id: str, after: int) -> AsyncIterator[bytes]:
    spoke = time.monotonic()
    while not kitchen.stopping():
        try:  # asked first: what happened before is told below
            over = (await asyncio.to_thread(store.get, id)).state in DONE
            found = await asyncio.to_thread(store.events, id, after)
        except UnknownJob:  # deleted meanwhile
            return
        except Exception as error:
            if in_plain_words(error) is None:
                raise
            over, found = False, []  # the database is away: it may come back
        for event in found:
            after, spoke = event.number, time.monotonic()
            data = orjson.dumps(event.data | {"at": event.at})
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data)
        if over and not found:
            return
        if time.monotonic() - spoke > _BEAT_S:
            spoke = time.monotonic()
            yield b": still at it\n\n"
        if not found:
            await asyncio.sleep(_LOOK_S)


@router.get("/{id}/log", responses=problems(404), summary="What its process wrote", response_class=PlainTextResponse)
async def log(request: Request, id: str) -> Response:
    """The last megabyte, as text."""
    await asyncio.to_thread((await _store(request)).get, id)
    return PlainTextResponse(await asyncio.to_thread(_tail, _folder(request, id) / "log.txt"))


@router.post("/{id}/cancel", response_model=Job, responses=problems(404, 409), summary="Stop a job")
async def cancel(request: Request, id: str) -> Response:
    """Answers at once; its process stops within a step. `resume` goes on from its last checkpoint."""
    store = await _store(request)
    if not await asyncio.to_thread(store.move, id, "cancelled", reason="cancelled by a caller"):
        state = (await asyncio.to_thread(store.get, id)).state
        raise Conflict(f"job {id} is {state} already")
    return reply(_told(await asyncio.to_thread(store.get, id)))


@router.post("/{id}/resume", response_model=Job, responses=problems(404, 409), summary="Go on with a job")
async def resume(request: Request, id: str) -> Response:
    """A failed or cancelled job is queued again, and goes on from its last checkpoint."""
    store, most = await _store(request), _kitchen(request).settings.max_jobs
    if not await asyncio.to_thread(store.move, id, "validating", only_from=("failed", "cancelled"), most=most):
        state = (await asyncio.to_thread(store.get, id)).state
        raise Conflict(f"job {id} is {state}; only failed and cancelled jobs can be resumed")
    _kitchen(request).pool.tune()
    return reply(_told(await asyncio.to_thread(store.get, id)))


@router.delete("/{id}", status_code=204, responses=problems(404, 409), summary="Forget a job")
async def delete(request: Request, id: str) -> Response:
    """Its data, checkpoints and log are removed; the model that it became stays."""
    await asyncio.to_thread(_forget, await _store(request), id, _folder(request, id))
    return Response(status_code=204)


def _forget(store: Store, id: str, folder: Path) -> None:
    try:
        store.delete(id)
    except Exception as error:
        if not is_full(error) or store.get(id).state in OPEN:
            raise
        remove(folder)  # this is the room that forgetting takes
        store.delete(id)
    remove(folder)


def _parts(form: FormData) -> dict[str, UploadFile | str]:
    """By name. Raises Invalid for one that would be ignored."""
    parts: dict[str, UploadFile | str] = {}
    for name, part in form.multi_items():
        if name not in ("spec", "dataset"):
            raise Invalid(f"unknown part {name!r}; send spec, JSON with all that is to be set, and {_AS_FILE}")
        if parts.setdefault(name, part) is not part:
            raise Invalid(f"the part {name!r} came twice; send one, and several tables or folders as a zip")
    return parts


def _spec(text: str) -> Spec:
    try:
        return Spec.model_validate_json(text)
    except ValidationError as error:
        raise wrong_field(error, Spec, "spec", "spec: ") from error


async def _text(part: Any) -> str:
    if part is None:
        raise BadInput("""the part 'spec' is missing; send JSON (curl -F 'spec={"name": "photos", "base": "resnet18"}')""")
    size = part.size or 0 if isinstance(part, UploadFile) else len(str(part))
    if size > _SPEC_BYTES:
        raise TooLarge(f"the part 'spec' has {size} bytes; the limit is {_SPEC_BYTES}")
    return (await part.read()).decode("utf-8", "replace") if isinstance(part, UploadFile) else str(part)


def _base(kitchen: Kitchen, spec: Spec) -> Card:
    """The model to start from; of its versions, the most asked one. Raises what can be known before the data is looked at."""
    try:
        card = kitchen.pool.versions(spec.base)[0].card
    except UnknownModel as error:
        raise Invalid(f"spec: base: {error.detail}") from error
    if spec.start == "fresh" and not described(card.source):
        raise Invalid(f"spec: start: {spec.base!r} has no network of its own to begin afresh; use weights")
    if TASKS[card.task].check is None:
        tunable = ", ".join(
            sorted({model.card.model for model in kitchen.pool.models(memory=False) if TASKS[model.card.task].check})
        )
        raise Invalid(f"spec: base: models for {card.task} cannot be tuned over HTTP yet; one of: {tunable}")
    return card


def _free(kitchen: Kitchen, spec: Spec) -> None:
    """Raise Conflict if the name belongs to a model for something else, as far as it is known what the new one is for."""
    if spec.task:
        one_task(spec.name, spec.task, [model.card for model in kitchen.pool.models(memory=False)])


def _accept(kitchen: Kitchen, spec: Spec, base: Card, dataset: UploadFile) -> Job:
    store, most = _open(kitchen), kitchen.settings.max_jobs
    id = new_id()
    folder = jobs_folder(kitchen.settings.home) / id
    try:
        folder.mkdir(parents=True)
        with (folder / "dataset").open("wb") as sink:
            shutil.copyfileobj(dataset.file, sink, 1 << 20)
        if not (folder / "dataset").stat().st_size:
            raise BadInput("the part 'dataset' is empty; send the data")
        if "@" in base.name:  # the catalogue keeps the newest versions only
            _keep(base, folder / "base" / base.name)
        return store.add(id, spec.model_dump(), most)
    except BaseException:
        remove(folder)
        raise


def _keep(base: Card, folder: Path) -> None:
    try:
        shutil.copytree(base.folder, folder, copy_function=link)
    except OSError as error:
        if base.folder.is_dir():
            raise
        raise Conflict(f"{base.name} has just been removed; start from a newer version") from error


def _told(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__slots__}


def _kitchen(request: Request) -> Kitchen:
    kitchen: Kitchen = request.app.state.kitchen
    return kitchen


async def _store(request: Request) -> Store:
    return await asyncio.to_thread(_open, _kitchen(request))


def _open(kitchen: Kitchen) -> Store:
    from app.tuning.store import Store  # 15 MB, for those who have jobs

    return Store.of(kitchen.settings.home, kitchen.settings.database)


def _folder(request: Request, id: str) -> Path:
    return jobs_folder(_kitchen(request).settings.home) / id


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read().decode("utf-8", "replace")
