"""POST /transcribe."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.tasks.speech.audio import MEDIA_TYPES
from app.web.answer import Order, per_file, reply, serve
from app.web.read import read_files
from app.web.schemas import TranscribeAnswer, TranscribeQuery, files_body, problems

router = APIRouter(tags=["inference"])


@router.post(
    "/transcribe",
    response_model=TranscribeAnswer,
    openapi_extra=files_body(MEDIA_TYPES),
    responses=problems(400, 404, 409, 413, 415, 422, 500, 503, 504, 507),
    summary="What is said in the recording?",
)
async def transcribe(request: Request, query: Annotated[TranscribeQuery, Query()]) -> Response:
    """A raw `audio/*` body, or multipart with one or more parts named `file`. Long recordings are cut and stitched."""
    files = await read_files(request, MEDIA_TYPES, request.app.state.kitchen.settings.max_inputs)
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
