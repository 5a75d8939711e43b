"""POST /predict/image and /predict/text."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.tasks.image.codec import MEDIA_TYPES
from app.web.answer import per_file, reply, serve
from app.web.kitchen import Order
from app.web.read import read_files, read_json, read_query, texts
from app.web.schemas import PredictAnswer, PredictQuery, PredictText, files_body, json_body, problems, query_of

router = APIRouter(tags=["inference"])
_ERRORS = problems(400, 404, 408, 409, 413, 415, 422, 500, 503, 504, 507)


@router.post(
    "/predict/image",
    response_model=PredictAnswer,
    openapi_extra=files_body(MEDIA_TYPES) | query_of(PredictQuery),
    responses=_ERRORS,
    summary="What is in the picture?",
)
async def predict_image(request: Request) -> Response:
    """A raw `image/*` body, or multipart with one or more parts named `file`. The best labels of each, best first."""
    query = read_query(request, PredictQuery)
    files = await read_files(request, MEDIA_TYPES, request.app.state.kitchen.settings.max_inputs, query.timeout_ms)
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


@router.post(
    "/predict/text",
    response_model=PredictAnswer,
    openapi_extra=json_body(PredictText),
    responses=_ERRORS,
    summary="Of which class is the text?",
)
async def predict_text(request: Request) -> Response:
    """The best labels of each text, best first. Texts with more tokens than the model reads are refused, or cut (`truncate`)."""
    body = await read_json(request, PredictText)
    items = texts(body.inputs, request.app.state.kitchen.settings.max_inputs)
    order = Order(
        task="text-classification",
        model=body.model,
        items=items,
        outputs=("scores",),
        decode={"truncate": body.truncate},
        interpret={"top_k": body.top_k},
        timeout_ms=body.timeout_ms,
    )
    return reply(per_file(await serve(request, order), [None] * len(items)))
