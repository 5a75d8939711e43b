"""POST /transcribe."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.tasks.speech.audio import MEDIA_TYPES
from app.web.answer import per_file, reply, serve
from app.web.kitchen import Order
from app.web.read import read_files, read_query
from app.web.schemas import TranscribeAnswer, TranscribeQuery, files_body, problems, query_of

router = APIRouter(tags=["inference"])


@router.post(
    "/transcribe",
    response_model=TranscribeAnswer,
    openapi_extra=files_body(MEDIA_TYPES) | query_of(TranscribeQuery),
    responses=problems(400, 404, 408, 409, 413, 415, 422, 500, 503, 504, 507),
    summary="What is said in the recording?",
)
async def transcribe(request: Request) -> Response:
    """A raw `audio/*` body, or multipart with one or more parts named `file`. Long recordings are cut and stitched."""
    query = read_query(request, TranscribeQuery)
    files = await read_files(request, MEDIA_TYPES, request.app.state.kitchen.settings.max_inputs, query.timeout_ms)
    order = Order(
        task="speech-recognition",
        model=query.model,
        items=[raw for _, raw in files],
        outputs=("token_ids", "token_scores"),
        decode={},
        interpret={"words": query.words},
        timeout_ms=query.timeout_ms,
    )
    served = await serve(request, order)
    return reply(per_file(served, [name for name, _ in files]))
