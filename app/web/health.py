"""GET /health/live, /health/ready, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import PlainTextResponse, Response

from app.web import exposition
from app.web.answer import reply
from app.web.read import no_query
from app.web.schemas import Live, Ready, problems

router = APIRouter(tags=["health"], dependencies=[Depends(no_query)])
# A worker that needs longer for its card's sample is not ready to serve others, unless its batches take half a second and more,
# as they should not. With the time for which an answer proves it (pool/client.py) less than two seconds, within which readiness
# is to tell of a fault.
_PROOF_S = 1.2


@router.get("/health/live", response_model=Live, summary="Does the HTTP process answer?")
async def live() -> Response:
    """That it answers is the answer."""
    return reply({"status": "live"})


@router.get(
    "/health/ready",
    response_model=Ready,
    responses={503: problems(503)[503] | {"model": Ready, "description": "not ready, and why"}},
    summary="Does every preloaded model answer?",
)
async def ready(request: Request) -> Response:
    """200 only after a real forward in each worker of each preloaded model, half a second old at most."""
    verdicts = await request.app.state.kitchen.pool.proven(_PROOF_S)
    answer = reply(
        {
            "status": "not ready" if any(verdicts.values()) else "ready",
            "models": {n: why or "ready" for n, why in verdicts.items()},
        }
    )
    answer.status_code = 503 if any(verdicts.values()) else 200
    return answer


@router.get("/metrics", summary="Prometheus", response_class=PlainTextResponse)
async def prometheus(request: Request) -> Response:
    """All processes together."""
    memory = [
        (model.card.name, replica.worker, replica.memory_bytes)
        for model in request.app.state.kitchen.pool.models()
        for replica in model.replicas
    ]
    return Response(exposition.render(memory), media_type=exposition.CONTENT_TYPE)
