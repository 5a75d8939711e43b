"""POST /predict/image."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.tasks.image.codec import MEDIA_TYPES
from app.web.answer import per_file, reply, serve
from app.web.kitchen import Order
from app.web.read import read_files, read_query
from app.web.schemas import PredictAnswer, PredictQuery, files_body, problems, query_of

router = APIRouter(tags=["inference"])


@router.post(
    "/predict/image",
    response_model=PredictAnswer,
    openapi_extra=files_body(MEDIA_TYPES) | query_of(PredictQuery),
    responses=problems(400, 404, 409, 413, 415, 422, 500, 503, 504, 507),
    summary="What is in the picture?",
)
async def predict_image(request: Request) -> Response:
    """A raw `image/*` body, or multipart with one or more parts named `file`. The best labels of each, best first."""
    query = read_query(request, PredictQuery)
    files = await read_files(request, MEDIA_TYPES, request.app.state.kitchen.settings.max_inputs)
    order = Order(
        task="image-classification",
        model=query.model,
        items=[raw for _, raw in files],
        outputs=("scores",),
        decode={},
        interpret={"top_k": query.top_k},
        timeout_ms=query.timeout_ms,
    )
    served = await serve(request, order)
    return reply(per_file(served, [name for name, _ in files]))
