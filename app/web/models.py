"""GET /models, /models/{name} · POST /models/{name}/load, /unload, /rollback · PUT /models/{name}/traffic."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.errors import Conflict, Loading
from app.pool.base import Model, Pool
from app.tuning.job import tuned
from app.web.answer import reply
from app.web.read import no_query, read_json
from app.web.schemas import ModelAnswer, ModelsAnswer, Traffic, json_body, problems

router = APIRouter(tags=["models"], dependencies=[Depends(no_query)])

_TURNS = 10  # in which a model may be loaded anew by others


@router.get("/models", response_model=ModelsAnswer, summary="All models and their states")
async def models(request: Request) -> Response:
    """Every card of the catalogue."""
    return reply({"models": [_told(request, model) for model in _pool(request).models(memory=not _outside(request))]})


@router.get("/models/{name}", response_model=ModelAnswer, responses=problems(404), summary="One model")
async def model(request: Request, name: str) -> Response:
    """One card, its workers, what is known of the loaded module, and its versions. `name@2` is that version."""
    return reply(_whole(request, name))


@router.post("/models/{name}/load", response_model=ModelAnswer, responses=problems(404, 409, 503), summary="Load a model")
async def load(request: Request, name: str) -> Response:
    """Returns when it is ready. Weights that are not on this machine are downloaded first."""
    for _ in range(_TURNS):
        model = await _pool(request).change(name, "load")
        if model.state != "loading" or model.why:
            break  # else it was ready, and another caller loads it anew
    if model.state == "failed":
        raise Conflict(f"{name} could not be loaded: {model.why}")
    if model.state == "unloaded":
        raise Conflict(f"{name} was unloaded meanwhile; agree on what is wanted, then load it again")
    if model.state == "loading":  # it has been tried a few times
        why = model.why or "others load and unload it all the time"
        raise Loading(f"{name} is not ready: {why}; ask again in a moment", retry_after_s=1.0)
    return reply(_told(request, model))


@router.post("/models/{name}/unload", response_model=ModelAnswer, responses=problems(404, 409), summary="Unload a model")
async def unload(request: Request, name: str) -> Response:
    """What it has accepted is answered; then its process ends and the memory is free."""
    model = await _pool(request).change(name, "unload")
    if model.state in ("loading", "ready"):
        raise Conflict(f"{name} was loaded meanwhile; agree on what is wanted, then unload it again")
    return reply(_told(request, model))


@router.put(
    "/models/{name}/traffic",
    response_model=ModelAnswer,
    openapi_extra=json_body(Traffic),
    responses=problems(400, 404, 408, 409, 413, 415, 422),
    summary="Share traffic among versions",
)
async def traffic(request: Request, name: str) -> Response:
    """Returns when every version that shall answer is ready and does so; until then all is as before."""
    body = await read_json(request, Traffic, flat=False)
    request.state.audit |= {"shares": body.shares, "shadow": body.shadow}
    await _pool(request).switch(name, body.shares, body.shadow or "")
    return reply(_whole(request, name))


@router.post("/models/{name}/rollback", response_model=ModelAnswer, responses=problems(404, 409), summary="Undo that")
async def rollback(request: Request, name: str) -> Response:
    """The traffic is shared as it was before the last change of it, by a person or by a job."""
    await _pool(request).back(name)
    return reply(_whole(request, name))


def _whole(request: Request, name: str) -> dict[str, Any]:
    first, *others = _pool(request).versions(name, memory=not _outside(request))
    return _told(request, first) | {"meta": first.meta, "versions": [_version(request, model) for model in (first, *others)]}


def _version(request: Request, model: Model) -> dict[str, Any]:
    """How it stands, and by which one judges whether it shall answer: how good it is, and where it comes from."""
    told, origin = _told(request, model), tuned(model.card.folder)
    return {field: told[field] for field in ("version", "state", "why", "share", "shadow")} | {
        "metrics": origin.get("metrics", {}),
        "base": origin.get("spec", {}).get("base", ""),
        "job": "" if _outside(request) else origin.get("job", ""),
    }


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.kitchen.pool
    return pool


def _outside(request: Request) -> bool:
    """Whether nobody knows who asks: the server's processes and jobs are no business of strangers."""
    return getattr(request.state, "outside", False)


def _told(request: Request, model: Model) -> dict[str, Any]:
    card = model.card
    return {
        "name": card.model,
        "task": card.task,
        "version": card.version,
        "state": model.state,
        "why": model.why,
        "share": model.share,
        "shadow": model.shadow,
        "default": model.default,
        "workers": [] if _outside(request) else [asdict(replica) for replica in model.replicas],
        "about": card.about.model_dump(exclude_defaults=True),
        "limits": card.limits.model_dump(),
    }
