"""A request's body → the inputs in it: raw bytes, multipart files, or checked JSON. Names what it does not understand."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from functools import cache
from typing import Any, TypeVar

import msgspec
import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import BadInput, Invalid, TooLarge, UnsupportedMedia

M = TypeVar("M", bound=BaseModel)
_SMALL = 1 << 16  # bytes of JSON that may be anything
_TOLD = 100  # characters of a caller's own that he is told
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1")
_MOST_FIELDS = 128  # of a JSON object: pydantic makes an error of each that is wrong, 10 µs and a kilobyte
_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last is what curl --data-binary says


async def read_files(
    request: Request, accepted: Sequence[str], max_inputs: int, timeout_ms: int | None
) -> list[tuple[str | None, bytes]]:
    """(file name, bytes) for each input. Raises UnsupportedMedia, Invalid, TooLarge, BadInput, RequestTimeout."""
    if timeout_ms:
        state = request.scope["state"]
        state["until"] = state["started"] + timeout_ms / 1000
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "multipart/form-data":
        return await _read_parts(request, max_inputs)
    if media not in accepted and media not in _RAW:
        raise UnsupportedMedia(f"{media!r} is not read here; send multipart/form-data or one of {', '.join(accepted)}")
    return [(None, await request.body())]


class _Whole(MultiPartParser):
    """Of a form that is cut off, Starlette's leaves out the last part without a word. And it decodes names and fields by whatever
    codec of Python's it is told, of which some take minutes for a megabyte, or raise what nobody expects.
    """

    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        told = parse_options_header(self.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
        if told.lower() not in _CHARSETS:
            raise MultiPartException(f"its charset {told[:40]!r} is not read here; send utf-8, which need not be said")
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it ends before its last boundary")
        return form


class _InMemory(_Whole):
    """Kept there, as raw bodies are: no disk that is full stands between a picture and its answer."""

    spool_max_size = sys.maxsize


async def read_form(request: Request, max_files: int, parser: type[MultiPartParser] = _Whole) -> FormData:
    """The parts, which the caller closes; none if the body is called something else. Raises MultiPartException."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return FormData()
    async with aclosing(request.stream()) as stream:
        return await parser(request.headers, stream, max_files=max_files, max_fields=16).parse()


async def _read_parts(request: Request, max_inputs: int) -> list[tuple[str | None, bytes]]:
    try:
        form = await read_form(request, max_inputs + 1, _InMemory)
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise too_many(f"more than {max_inputs}", max_inputs) from error
        raise BadInput(f"the multipart body is damaged: {error.message}") from error
    try:
        return await _files(form, max_inputs)
    finally:
        await form.close()


async def _files(form: FormData, max_inputs: int) -> list[tuple[str | None, bytes]]:
    files: list[tuple[str | None, bytes]] = []
    for name, part in form.multi_items():
        if name != "file":
            raise Invalid(f"unknown part {name[:_TOLD]!r}; send each file in a part named 'file', and options in the query")
        if not isinstance(part, UploadFile):
            raise Invalid("the part 'file' has no filename; send it as a file (curl -F file=@name)")
        files.append((_told(part.filename), await part.read()))
    if not files:
        raise BadInput("the multipart body has no part named 'file'; send at least one")
    if len(files) > max_inputs:
        raise too_many(str(len(files)), max_inputs)
    return files


def _told(name: str | None) -> str | None:
    """A file's name as JSON can say it: halves of surrogate pairs become question marks."""
    return name and name.encode("utf-8", "replace").decode()


async def no_query(request: Request) -> None:
    """Raise Invalid for a query where there is nothing to say in one."""
    if request.scope["query_string"]:
        name = next(iter(request.query_params), "")
        raise Invalid(f"unknown query parameter {name[:_TOLD]!r}; this call takes none (options of POST calls stand in the body)")


def read_query(request: Request, model: type[M]) -> M:
    """The query as `model`. Raises Invalid naming the parameter that is wrong, unknown or given twice."""
    if not request.scope["query_string"]:
        defaults: M = _defaults(model)
        return defaults
    if len(asked := request.query_params.multi_items()) > _MOST_FIELDS:
        raise Invalid(f"the query has {len(asked)} parameters; known: {', '.join(model.model_fields)}")
    for name, times in Counter(name for name, _ in asked).most_common(1):
        if times > 1:
            raise Invalid(f"the query parameter {name[:_TOLD]!r} is given {times} times; give it once")
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise wrong_field(error, model, "query") from error


@cache
def _defaults(model: type[BaseModel]) -> Any:
    return model()


async def read_json(request: Request, model: type[M], *, flat: bool = True) -> M:
    """The body as `model`, which is `flat` if it has values and lists of texts alone. Raises UnsupportedMedia, BadInput,
    RequestTimeout, Invalid naming the first field that is wrong.
    """
    await no_query(request)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in ("", "application/json", "application/x-www-form-urlencoded"):
        raise UnsupportedMedia(f"{media!r} is not read here; send application/json")
    raw = await request.body()
    if not raw:
        raise BadInput('the body is empty; send JSON such as {"inputs": "a text"}')
    values = _flat(raw, model) if flat and len(raw) > _SMALL else _parsed(raw)
    if isinstance(values, dict) and (wide := [one for one in (values, *values.values()) if _is_wide(one)]):
        known = ", ".join(model.model_fields)
        raise Invalid(f"the body has an object of {len(wide[0])} fields; the limit is {_MOST_FIELDS}; known: {known}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise wrong_field(error, model, "body") from error


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error


def _flat(raw: bytes, model: type[BaseModel]) -> dict[str, Any]:
    """The same, of values and lists of texts alone: what else there is, is not even made. A megabyte of empty lists would take a
    frontend as long as forty of texts, and twenty times its size.
    """
    try:
        found = _flat_decoder(model).decode(raw)
    except msgspec.ValidationError as error:
        raise Invalid(f"the body: {str(error)[: 2 * _TOLD]}; known: {', '.join(model.model_fields)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the body is not valid JSON: {error}") from error
    return {field: value for field in model.model_fields if (value := getattr(found, field)) is not msgspec.UNSET}


@cache
def _flat_decoder(model: type[BaseModel]) -> Any:
    value = str | list[str] | int | float | bool | None
    fields = [(field, value | msgspec.UnsetType, msgspec.UNSET) for field in model.model_fields]
    return msgspec.json.Decoder(msgspec.defstruct(model.__name__, fields, forbid_unknown_fields=True))


def _is_wide(value: object) -> bool:
    return isinstance(value, dict) and len(value) > _MOST_FIELDS


def texts(inputs: str | list[str], max_inputs: int) -> list[str]:
    """One text, or several. Raises Invalid where there is none, TooLarge where there are too many."""
    found = [inputs] if isinstance(inputs, str) else inputs
    if not found:
        raise Invalid("inputs: the list is empty; send at least one text")
    if len(found) > max_inputs:
        raise too_many(str(len(found)), max_inputs)
    return found


def wrong_field(error: ValidationError, model: type[BaseModel], whole: str, before: str = "") -> Invalid:
    """What the caller hears of the first field that is wrong. `whole`: what the value is called if no field is to blame."""
    # Of a union's complaints, the one that came farthest; "str" and "list[str]" in its path are pydantic's names for the ways.
    first = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    field = ".".join(str(part) for part in first["loc"] if not re.match(r"str$|list\[", str(part))) or whole
    if first["type"] == "extra_forbidden":
        return Invalid(f"{before}unknown field {field[:_TOLD]!r}; known: {', '.join(model.model_fields)}")
    return Invalid(f"{before}{field[:_TOLD]}: {first['msg']}")


def too_many(count: str, limit: int) -> TooLarge:
    """More inputs than one request may have."""
    return TooLarge(f"the request has {count} inputs; the limit is {limit}: send them in several requests")
