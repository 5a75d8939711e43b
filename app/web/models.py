"""GET /models, /models/{name} · POST /models/{name}/load, /unload."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.errors import Conflict, UnknownModel
from app.pool.base import Model, Pool
from app.web.answer import reply
from app.web.read import no_query
from app.web.schemas import ModelAnswer, ModelsAnswer, problems

router = APIRouter(tags=["models"], dependencies=[Depends(no_query)])


@router.get("/models", response_model=ModelsAnswer, summary="All models and their states")
async def models(request: Request) -> Response:
    """Every card of the catalogue."""
    return reply({"models": [_told(model) for model in _pool(request).models()]})


@router.get("/models/{name}", response_model=ModelAnswer, responses=problems(404), summary="One model")
async def model(request: Request, name: str) -> Response:
    """One card, its workers, and what is known of the loaded module."""
    known = {model.card.name: model for model in _pool(request).models()}
    if name not in known:
        raise UnknownModel(f"no model is called {name!r}; there are: {', '.join(known)}")
    return reply(_told(known[name]) | {"meta": known[name].meta})


@router.post("/models/{name}/load", response_model=ModelAnswer, responses=problems(404, 409), summary="Load a model")
async def load(request: Request, name: str) -> Response:
    """Returns when it is ready. Weights that are not on this machine are downloaded first."""
    model = await _pool(request).change(name, "load")
    if model.state == "failed":
        raise Conflict(f"{name} could not be loaded: {model.why}")
    if model.state == "unloaded":
        raise Conflict(f"{name} was unloaded meanwhile; agree on what is wanted, then load it again")
    return reply(_told(model))


@router.post("/models/{name}/unload", response_model=ModelAnswer, responses=problems(404, 409), summary="Unload a model")
async def unload(request: Request, name: str) -> Response:
    """What it has accepted is answered; then its process ends and the memory is free."""
    model = await _pool(request).change(name, "unload")
    if model.state in ("loading", "ready"):
        raise Conflict(f"{name} was loaded meanwhile; agree on what is wanted, then unload it again")
    return reply(_told(model))


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.kitchen.pool
    return pool


def _told(model: Model) -> dict[str, Any]:
    card = model.card
    return {
        "name": card.name,
        "task": card.task,
        "version": card.version,
        "state": model.state,
        "why": model.why,
        "default": model.default,
        "workers": [asdict(replica) for replica in model.replicas],
        "about": card.about.model_dump(exclude_defaults=True),
        "limits": card.limits.model_dump(),
    }
