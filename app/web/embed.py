"""POST /embed/text and /embed/image."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.errors import HearthError
from app.tasks.image.codec import MEDIA_TYPES
from app.web.answer import Served, reply, serve, trouble
from app.web.kitchen import Order
from app.web.read import read_files, read_json, read_query, texts
from app.web.schemas import EmbedAnswer, EmbedImageQuery, EmbedText, files_body, json_body, problems, query_of

router = APIRouter(tags=["inference"])
_ERRORS = problems(400, 404, 408, 409, 413, 415, 422, 500, 503, 504, 507)


@router.post(
    "/embed/text", response_model=EmbedAnswer, openapi_extra=json_body(EmbedText), responses=_ERRORS, summary="Texts → vectors"
)
async def embed_text(request: Request) -> Response:
    """One vector per text, in order. Texts with more tokens than the model reads are refused, or cut with `truncate`."""
    body = await read_json(request, EmbedText)
    order = Order(
        task="text-embedding",
        model=body.model,
        items=texts(body.inputs, request.app.state.kitchen.settings.max_inputs),
        outputs=("embedding",),
        decode={"truncate": body.truncate, "dimensions": body.dimensions},
        interpret={"normalize": body.normalize, "dimensions": body.dimensions},
        timeout_ms=body.timeout_ms,
    )
    served = await serve(request, order)
    tokens = sum(decoded.info["tokens"] for decoded in served.decoded if decoded is not None)
    return reply(_answer(served, body.encoding) | {"usage": {"tokens": tokens}})


@router.post(
    "/embed/image",
    response_model=EmbedAnswer,
    openapi_extra=files_body(MEDIA_TYPES) | query_of(EmbedImageQuery),
    responses=_ERRORS,
    summary="Pictures → vectors",
)
async def embed_image(request: Request) -> Response:
    """One vector per picture, in order: what the model's last layer sees."""
    query = read_query(request, EmbedImageQuery)
    files = await read_files(request, MEDIA_TYPES, request.app.state.kitchen.settings.max_inputs, query.timeout_ms)
    order = Order(
        task="image-classification",
        model=query.model,
        items=[raw for _, raw in files],
        outputs=("embedding",),
        decode={},
        interpret={"normalize": query.normalize},
        timeout_ms=query.timeout_ms,
    )
    return reply(_answer(await serve(request, order), query.encoding))


def _answer(served: Served, encoding: Literal["float", "base64"]) -> dict[str, Any]:
    vectors = [None if isinstance(result, HearthError) else _written(result["embedding"], encoding) for result in served.results]
    errors = {str(i): trouble(result) for i, result in enumerate(served.results) if isinstance(result, HearthError)}
    body = {"model": served.model.card.model, "version": served.model.card.version, "embeddings": vectors}
    return body | ({"errors": errors} if errors else {})


def _written(vector: np.ndarray, encoding: str) -> Any:
    vector = np.ascontiguousarray(vector, "<f4")
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector
