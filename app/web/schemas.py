"""Request bodies and queries (checked) and answers (documented; what is sent is written by orjson, without these)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.tuning.job import Job
from app.web.problems import MEDIA_TYPE, STATUS

Texts = str | Annotated[list[str], Field(fail_fast=True)]  # a million wrong ones are one mistake, and not a million errors

Name = Annotated[str, Field(max_length=200)]  # of a model; longer ones would be told to whoever sent them


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Name | None = Field(None, description="which model; without it, the task's default")
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = Field(None, description="deadline for the answer")


class PredictQuery(_Query):
    """Options of POST /predict/image."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="labels per picture, best first")


class EmbedImageQuery(_Query):
    """Options of POST /embed/image."""

    normalize: bool = Field(True, description="scale each vector to length 1")
    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32")


class TranscribeQuery(_Query):
    """Options of POST /transcribe."""

    words: bool = Field(False, description="give each word's times and score")


class EmbedText(_Strict):
    """Body of POST /embed/text."""

    model_config = ConfigDict(json_schema_extra={"example": {"inputs": ["a warm hearth", "an open fire"]}})

    inputs: Texts = Field(description="one text, or several")
    model: Name | None = None
    normalize: bool = True
    truncate: bool = Field(False, description="cut texts that have too many tokens instead of refusing them")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="keep only the first ones")
    encoding: Literal["float", "base64"] = "float"
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None


class PredictText(_Strict):
    """Body of POST /predict/text."""

    model_config = ConfigDict(json_schema_extra={"example": {"inputs": ["a charming journey", "bleak and desperate"]}})

    inputs: Texts = Field(description="one text, or several")
    model: Name | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="labels per text, best first")
    truncate: bool = Field(False, description="cut texts that have too many tokens instead of refusing them")
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None


class Trouble(BaseModel):
    """Why one input of several has no result."""

    code: str
    detail: str


class Prediction(BaseModel):
    """One label."""

    label: str
    index: int
    score: float


class PredictResult(BaseModel):
    """One picture, or one text."""

    file: str | None = None
    predictions: list[Prediction] | None = None
    error: Trouble | None = None


class PredictAnswer(BaseModel):
    """Answer of POST /predict/image and /predict/text."""

    model: str
    version: str
    results: list[PredictResult]


class EmbedAnswer(BaseModel):
    """Answer of POST /embed/…; an input that failed has null for its vector and an entry in `errors`."""

    model: str
    version: str
    embeddings: list[list[float] | str | None]
    errors: dict[str, Trouble] | None = None
    usage: dict[str, int] | None = None


class Word(BaseModel):
    """One word, and when it was said; of a model whose tokens are whole words (spoken-digits) when it was recognised."""

    word: str
    start_s: float
    end_s: float
    score: float


class TranscribeResult(BaseModel):
    """One recording."""

    file: str | None = None
    text: str | None = None
    duration_s: float | None = None
    words: list[Word] | None = None
    error: Trouble | None = None


class TranscribeAnswer(BaseModel):
    """Answer of POST /transcribe."""

    model: str
    version: str
    results: list[TranscribeResult]


class Worker(BaseModel):
    """One process that runs a model."""

    worker: str
    pid: int
    device: str
    state: str
    memory_bytes: int
    restarts: int


class Version(BaseModel):
    """One version of a model."""

    version: str
    state: Literal["unloaded", "loading", "ready", "failed"]
    why: str
    share: float
    shadow: bool
    metrics: dict[str, float]
    """Of the held-out part, if a job made it."""
    base: str
    job: str


class ModelAnswer(BaseModel):
    """One model."""

    name: str
    task: str
    version: str
    state: Literal["unloaded", "loading", "ready", "failed"]
    why: str
    share: float = Field(description="of the requests for this name")
    shadow: bool
    default: bool
    workers: list[Worker] = Field(description="none for callers of other machines, where there are no keys")
    about: dict[str, Any]
    limits: dict[str, Any]
    meta: dict[str, Any] | None = None
    versions: list[Version] | None = None


Number = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
Share = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Traffic(_Strict):
    """Who answers for a model, from now on."""

    model_config = ConfigDict(json_schema_extra={"example": {"shares": {"1": 0.9, "2": 0.1}}})

    shares: Annotated[dict[Number, Share], Field(min_length=1, max_length=100)] = Field(
        description="version → its share of the requests; what they add up to does not matter"
    )
    shadow: Number | None = Field(None, description="a version that answers copies of the requests, which nobody hears")


class ModelsAnswer(BaseModel):
    """All models."""

    models: list[ModelAnswer]


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "the job is over, and nothing came after Last-Event-ID"},
}
"""OpenAPI's entries for those of a job."""


class JobsAnswer(BaseModel):
    """All jobs."""

    jobs: list[Job]


class Live(BaseModel):
    """The HTTP process answers."""

    status: Literal["live"]


class Ready(BaseModel):
    """Whether every preloaded model answers."""

    status: Literal["ready", "not ready"]
    models: dict[str, str] = Field(description="model → ready, or what is wrong")


class ProblemAnswer(BaseModel):
    """Every error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: Literal[tuple(STATUS)]  # type: ignore[valid-type]
    detail: str
    request_id: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for the errors of a route."""
    names = {status: ", ".join(code for code, (s, _) in STATUS.items() if s == status) for status in statuses}
    schema = {"$ref": "#/components/schemas/ProblemAnswer"}
    return {status: {"description": names[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}


def files_body(media_types: tuple[str, ...]) -> dict[str, Any]:
    """OpenAPI's request body of a route that takes raw bytes or files."""
    raw = {"schema": {"type": "string", "format": "binary"}}
    part = {"type": "object", "required": ["file"], "properties": {"file": {"type": "array", "items": raw["schema"]}}}
    content = dict.fromkeys((*media_types, "application/octet-stream"), raw)
    return {"requestBody": {"required": True, "content": {**content, "multipart/form-data": {"schema": part}}}}


def query_of(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's query parameters of a route that reads its query itself (`web/read.py: read_query`)."""
    fields = model.model_json_schema()["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": schema.pop("description", ""), "schema": schema}
            for name, schema in fields.items()
        ]
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's request body of a route that reads JSON itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def job_body(spec: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's request body of POST /finetune."""
    properties = {"spec": spec.model_json_schema(), "dataset": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": list(properties), "properties": properties}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form, "encoding": {"spec": {"contentType": "application/json"}}}},
        }
    }
