"""The HTTP app: routers, one error handler, the documentation page. Wired to any `Pool`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from app import __version__
from app.decoding.client import Decoders, Threads
from app.errors import ClientLeft, HearthError
from app.pool.base import Pool
from app.settings import Settings
from app.web import embed, finetune, health, models, predict, transcribe
from app.web.answer import reply
from app.web.edge import Edge
from app.web.kitchen import Kitchen
from app.web.origins import confined
from app.web.problems import on_error
from app.web.schemas import ProblemAnswer, problems

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


_JSON_MB = 16.0  # it becomes several times as much when it is read, while nobody else is heard


def make_app(
    pool: Pool,
    settings: Settings,
    decoders: Decoders | None = None,
    lifespan: Lifespan | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Edge:
    """The whole HTTP side over `pool`. Without `decoders`, what comes is decoded in this process."""
    app = FastAPI(
        title="Hearth",
        version=__version__,
        summary="One PyTorch server for images, text and speech",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.kitchen = Kitchen(pool, settings, decoders or Threads(2), stopping)
    for kind in (ClientLeft, HearthError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
    for part in (predict, embed, transcribe, models, finetune, health):
        app.include_router(part.router, responses=problems(413, 422, 503))  # of any call: too much, not understood, no room
    direct = {route.path: route.endpoint for part in (predict, embed, transcribe) for route in part.router.routes}
    _document(app)
    sketched = {"/predict/text": "text-classification", "/embed/text": "text-embedding"}
    limits = dict.fromkeys(sketched, int(min(settings.max_body_mb, max(_JSON_MB, settings.max_body_mb / 4)) * 2**20))
    limits["/finetune"] = int(settings.max_dataset_mb * 2**20)
    return Edge(app, direct, settings, limits, sketched)


def _document(app: FastAPI) -> None:
    """`/` and `/docs`, whose files come from a package: they work without a network."""
    static = resources.files("fastapi_swagger") / "resources"
    app.mount("/docs/static", StaticFiles(directory=str(static)))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        paths = ["/docs", "/models", "/health/ready", "/metrics"]
        return confined(reply({"name": "hearth", "version": __version__, "see": paths}))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Hearth",
            swagger_js_url="/docs/static/swagger-ui-bundle.js",
            swagger_css_url="/docs/static/swagger-ui.css",
            swagger_favicon_url="/docs/static/favicon-32x32.png",
        )
        return confined(page)

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("ProblemAnswer", ProblemAnswer.model_json_schema())
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"key": []}]  # a server without keys asks for none
        refusals = {str(status): answer for status, answer in problems(401, 403, 429).items()}
        for path, verbs in schema["paths"].items():
            for call in verbs.values() if not path.startswith("/health/") else ():
                call["responses"] = refusals | call["responses"]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
