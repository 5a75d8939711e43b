"""The command `hearth`: serve, pull, models, predict, tune, jobs, keys."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from app.catalogue import Catalogue, is_packed
from app.errors import HearthError
from app.listing import listing
from app.settings import Settings, public_fields

if TYPE_CHECKING:
    import httpx

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One PyTorch server for images, text and speech.",
)
out = Console(highlight=False, markup=False, emoji=False)  # names and reasons that others wrote are shown as they are
T = TypeVar("T")


@app.callback()
def begin(context: typer.Context) -> None:
    """From here on a signal may raise; until here it ends the process (`__main__`). The server handles them itself, later."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if context.invoked_subcommand != "serve" and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, usual)


def serve(**given: str | None) -> None:
    """Start the server. Each option is also a variable in the environment: --port is HEARTH_PORT."""
    from app.main import serve as run
    from app.welcome import announce

    run(Settings.from_environment(given), announce)


def _option(name: str, help: str | None) -> inspect.Parameter:
    kind = Annotated[str | None, typer.Option(help=help, metavar="VALUE")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


# The options are the settings, name for name (app/settings.py): a setting is born once.
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_option(name, field.description) for name, field in public_fields().items()]
)
app.command()(serve)


@app.command()
def pull(names: Annotated[list[str] | None, typer.Argument(help="models; none: the pretrained defaults")] = None) -> None:
    """Download weights: resumes what was cut, checks the hash."""
    from app.pull import pull as run

    settings = Settings.from_environment()
    run(Catalogue.read(settings.home), names or [], settings, out)


@app.command()
def models() -> None:
    """List the catalogue and which weights are here."""
    from app.weights import locate

    settings = Settings.from_environment()
    catalogue = Catalogue.read(settings.home)
    table = listing("model", "task", "weights", "default", "about")
    for card in catalogue.cards.values():
        here = "here" if locate(card, settings) else "missing"
        default = "starter" if card.default and card.starter else "yes" if card.default else ""
        table.add_row(card.name, card.task, here, default, card.about.accuracy or card.about.title)
    out.print(table)
    out.print("hearth pull NAME brings missing weights, and checks those that are here.")
    for folder, why in catalogue.broken.items():
        out.print(Text.assemble(("left out", "red"), f": {folder}: {why}"))


@app.command()
def predict(
    what: Annotated[str, typer.Argument(help="a picture or recording (path), or a text")],
    model: Annotated[str | None, typer.Option(help="which model")] = None,
    url: Annotated[str | None, typer.Option(help="a running server")] = None,
) -> None:
    """Ask a running server."""
    from app.tasks.media import endpoint_of

    path = Path(what)
    query = {"model": model} if model else {}

    def ask(http: httpx.Client) -> httpx.Response:
        if path.is_file():
            files = {"file": (path.name, path.read_bytes())}
            return http.post(endpoint_of(path), params=query, files=files)
        task = http.get(f"/models/{model}").json().get("task") if model else ""
        endpoint = "/predict/text" if task == "text-classification" else "/embed/text"
        return http.post(endpoint, json={"inputs": what, **query})

    answer = _ask(ask, url)
    out.print_json(json.dumps(answer.json()))
    raise typer.Exit(0 if answer.is_success else 1)


@app.command()
def tune(
    name: Annotated[str, typer.Argument(help="the model whose card and tune.toml are used, or the one to start from (--as)")],
    data: Annotated[Path, typer.Option(help="folder, archive or table of training data", exists=True)],
    new: Annotated[
        str | None,
        typer.Option("--as", help="make a version of a model of this name, as POST /finetune does; --set: fields of its spec"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="where the result goes; default: the model's own folder"),
    ] = None,
    start: Annotated[bool, typer.Option("--from-weights", help="go on from the card's weights, not from fresh ones")] = False,
    more: Annotated[list[str] | None, typer.Option("--set", help="a field of the recipe, as name=value")] = None,
) -> None:
    """Train a model: weights, card and measured accuracy out."""
    from app.tuning.command import read_recipe, tune as run
    from app.tuning.device import leave
    from app.weights import locate

    settings = Settings.from_environment()
    if new:
        if output or start:
            _stop("--out and --from-weights go without --as, which writes to HEARTH_HOME and starts from the model's weights")
        _tune_as(new, name, data, dict(_pair(item) for item in more or ()), settings)
        return
    card = Catalogue.read(settings.home).named(name)
    folder = output or (settings.home / "models" / name if is_packed() else card.folder)
    recipe, options = read_recipe(card, dict(_pair(item) for item in more or ()))
    run(card, data, folder, recipe, out, options=options, start=locate(card, settings) if start else None)
    leave()


def _tune_as(name: str, base: str, data: Path, fields: dict[str, str], settings: Settings) -> None:
    from pydantic import ValidationError

    from app.tuning.device import leave
    from app.tuning.here import tune as run
    from app.tuning.spec import Spec
    from app.web.read import wrong_field

    try:
        spec = Spec.model_validate({**fields, "name": name, "base": base})
    except ValidationError as error:
        raise wrong_field(error, Spec, "spec", "--set ") from error
    run(spec, data, settings, out)
    leave()


jobs = typer.Typer(help="Jobs of a running server: a table of them, or one to watch.")
app.add_typer(jobs, name="jobs")
_Url = Annotated[str | None, typer.Option(help="a running server")]


@jobs.callback(invoke_without_command=True)
def all_jobs(context: typer.Context, url: _Url = None) -> None:
    """List the jobs of a running server."""
    from app.jobs import show

    if context.invoked_subcommand is None:
        _ask(lambda http: show(http, out), url)


@jobs.command()
def watch(id: Annotated[str, typer.Argument(help="the job")], url: _Url = None) -> None:
    """Follow a job to its end."""
    from app.jobs import watch as run

    raise typer.Exit(0 if _ask(lambda http: run(http, id, out), url) else 1)


keys = typer.Typer(no_args_is_help=True, help="The file of keys (HEARTH_KEYS_FILE): add one, list them, revoke one.")
app.add_typer(keys, name="keys")


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="whose it is; letters, digits, . _ @ -")],
    role: Annotated[str, typer.Option(help="infer: ask models; tune: jobs too; admin: everything")] = "infer",
    rate: Annotated[str, typer.Option(help="how often it may ask, as 10/s, 600/min or 1000/h")] = "",
    burst: Annotated[int, typer.Option(help="how many of them at once; 0: all of that time's")] = 0,
    share: Annotated[float, typer.Option(help="largest part of a model's queue that it may hold, up to 1")] = 1.0,
) -> None:
    """Make a key and print it, this once. A server that runs knows it within two seconds."""
    from app.keys import add as make

    key, text = make(_keys_file(), name, role, rate, burst, share)
    print(text)
    Console(stderr=True, highlight=False).print(f"{key.name} has it; it is kept as a hash, and cannot be shown again")


@keys.command(name="list")
def all_keys() -> None:
    """List the keys, without what is secret."""
    from app.keys import Keys, read

    table = listing("id", "name", "role", "rate", "share", "created")
    for key in Keys.parse(read(path := _keys_file()), str(path)).by_id.values():
        rate = f"{key.rate}, {key.burst} at once" if key.burst else key.rate
        table.add_row(key.id, key.name, key.role, rate, f"{key.share:.0%}" if key.share < 1 else "", f"{key.created}")
    out.print(table)


@keys.command()
def revoke(which: Annotated[str, typer.Argument(help="its id or name")]) -> None:
    """Take a key away. A server that runs refuses it within two seconds; the audit log remembers its id."""
    from app.keys import revoke as take

    key = take(_keys_file(), which)
    out.print(f"{key.name} ({key.id}) is revoked")


def _keys_file() -> Path:
    if not (file := Settings.from_environment().keys_file):
        _stop("HEARTH_KEYS_FILE names no file; set it, for this command and for hearth serve")
    return Path(file)


def _ask(what: Callable[[httpx.Client], T], url: str | None) -> T:
    import httpx

    settings = Settings.from_environment()
    base = url or f"http://{settings.host}:{settings.port}"
    heads = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    try:
        with httpx.Client(base_url=base, headers=heads, timeout=60) as http:
            return what(http)
    except httpx.ConnectError:
        _stop(f"no server answers at {base}; start one with: hearth serve")
    except httpx.TransportError as error:
        _stop(f"{base} gave no answer: {str(error) or type(error).__name__}")


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        _stop(f"--set {item}: write it as name=value")
    return name.strip().lower(), value.strip()


def _stop(why: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(Text.assemble(("hearth:", "red"), f" {why}"), soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Entry of the command. Expected failures are one line, not a traceback."""
    try:
        app()
    except HearthError as error:
        _stop(error.detail)
    except PermissionError as error:
        _stop(f"{error.filename}: {error.strerror}")
