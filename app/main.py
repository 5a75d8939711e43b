"""The roof: settings → catalogue → weights → supervisor. The only place where things are wired."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from app import keys, logs, settings as env
from app.audit import note
from app.card import Card
from app.catalogue import Catalogue
from app.download import WeightsError
from app.errors import Invalid
from app.logs import log
from app.pool.roster import Roster, Served
from app.pool.traffic import Traffic
from app.private import private_folder
from app.process import adopt_orphans, leashed_command, search_path, take_descriptors
from app.settings import Settings, traffic_file
from app.tasks.base import Files
from app.tuning.job import made_by, tuned, unannounced
from app.weights import Damaged, checked, is_remote, locate, reachable

if TYPE_CHECKING:
    from app.pool.supervisor import Supervisor

Announce = Callable[[Settings, Roster, int], None]


def serve(settings: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or Ctrl-C. `announce` hears the port when everything stands.

    Raises Invalid (a card, a name or the file of keys is wrong, port taken), WeightsError (profile `pretrained` without weights),
    HearthError (a task of the supervisor failed).
    """
    logs.configure(settings)
    take_descriptors()
    adopt_orphans()
    if settings.keys_file:
        keys.Keys.parse(keys.read(Path(settings.keys_file)), settings.keys_file)
    elif settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("no keys (HEARTH_KEYS_FILE): whoever reaches %s may ask models; all else is for this machine", settings.host)
    catalogue = Catalogue.read(settings.home)
    for folder, why in catalogue.broken.items():
        log.error("the card in %s is left out: %s", folder, why)
    listening = _listen(settings)
    port = listening.getsockname()[1]
    try:
        asyncio.run(_run(settings, catalogue, listening, lambda roster: announce(settings, roster, port)))
    finally:
        listening.close()


async def _run(settings: Settings, catalogue: Catalogue, listening: socket.socket, announce: Callable[[Roster], None]) -> None:
    """Serve. A signal ends the start at once; later it drains."""
    preparing = asyncio.current_task()
    supervisor: Supervisor | None = None

    def stop() -> None:
        if supervisor is not None:
            supervisor.stop()
        elif preparing is not None:
            preparing.cancel()

    had_terminal, turn = os.isatty(0), asyncio.Lock()

    def reload() -> None:
        if had_terminal and not os.isatty(0):  # it was closed, and said so to all that it had started
            stop()
        elif supervisor is None:
            log.info("still starting; cards and keys are read again when SIGHUP comes after that")
        else:
            supervisor.spawn(_reload(supervisor, settings, turn), "reading keys and cards again")

    for number, follow in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        asyncio.get_running_loop().add_signal_handler(number, follow)
    with private_folder() as folder:
        try:
            supervisor = await _prepare(settings, catalogue, listening, folder)
        except asyncio.CancelledError:
            log.info("stopped while starting; what was downloaded is kept, and the next start goes on from there")
            return
        await supervisor.run(announce)


async def _prepare(settings: Settings, catalogue: Catalogue, listening: socket.socket, folder: Path) -> Supervisor:
    """Find out what is to be served, on what, from which files."""
    (folder / "metrics").mkdir()
    env.export("PROMETHEUS_MULTIPROC_DIR", str(folder / "metrics"))
    from app.pool.supervisor import Supervisor  # after PROMETHEUS_MULTIPROC_DIR is set: app/metrics.py reads it once

    defaults = await _choose(settings, catalogue)
    traffic = Traffic(traffic_file(settings.home))
    traffic.forget([*catalogue.cards, *(Path(folder).name for folder in catalogue.broken)])
    routes = traffic.begin(catalogue.cards, {name for name, card in catalogue.cards.items() if tuned(card.folder)})
    named = settings.models or [name for name in defaults.values() if catalogue.cards[name].serving.preload]
    preload = [key for name in named for key in (routes[name].shares if name in routes else [name])]
    if unknown := [name for name in preload if name not in catalogue.cards]:
        raise Invalid(f"HEARTH_MODELS: no model is called {unknown[0]!r}; there are: {', '.join(catalogue.cards)}")
    answering = {key for route in routes.values() for key in (*route.shares, route.shadow)}
    resident = [
        key for key, card in catalogue.cards.items() if key in answering or (card.serving.resident and card.model not in routes)
    ]
    preload = list(dict.fromkeys([*preload, *resident]))
    for name in preload:  # a task whose default is not among the chosen models uses the first one that is
        if defaults.get(catalogue.cards[name].task) not in preload:
            defaults[catalogue.cards[name].task] = name
    settings = settings.model_copy(update={"devices": tuple(await _devices(settings))})
    roster = Roster(
        {name: Served(card, name in defaults.values(), name in preload) for name, card in catalogue.cards.items()},
        settings.devices,
    )

    async def find(card: Card) -> Files:
        return await _find(card, settings)

    supervisor = Supervisor(settings, settings.to_environment(), roster, traffic, listening, folder, find)
    for card, share in unannounced(catalogue.cards.values(), settings.home):
        supervisor.adopt(card, share)
    return supervisor


async def _reload(supervisor: Supervisor, settings: Settings, turn: asyncio.Lock) -> None:
    """Read keys and cards again; what is wrong with them is told, and changes nothing."""
    async with turn:
        log.info("reloading keys and cards")
        await supervisor.keyring.reload()
        try:
            catalogue = await asyncio.to_thread(Catalogue.read, settings.home)
        except Invalid as error:
            log.error("THE CARDS STAY AS THEY WERE: %s", error.detail)
            await asyncio.to_thread(note, settings.home, "cards reload", "refused", why=error.detail)
            return
        # A person's own version waits for its traffic; of a job's the foreman tells.
        shares = {name: 0.0 for name, card in catalogue.cards.items() if not made_by(card.folder)}
        shares |= {card.name: share for card, share in unannounced(catalogue.cards.values(), settings.home)}
        taken = supervisor.renewal.take(catalogue, shares)
        await asyncio.to_thread(note, settings.home, "cards reload", "done", **taken)  # it waits for others that write there


async def _choose(settings: Settings, catalogue: Catalogue) -> dict[str, str]:
    """Task → default model. Pulls the pretrained ones if the profile wants them and they are not here."""

    def at_hand(card: Card) -> bool:
        return card.name not in damaged and locate(card, settings) is not None

    damaged: dict[str, str] = {}
    if settings.profile == "starter" or settings.models:
        return catalogue.defaults(settings.profile, at_hand)
    wanted = [catalogue.cards[name] for name in catalogue.defaults("pretrained", at_hand).values()]
    damaged = await asyncio.to_thread(_damage, wanted, settings)
    missing = [card for card in wanted if not at_hand(card)]
    if missing and (settings.profile == "pretrained" or await _any_reachable(missing, settings)):
        await _pull([card.name for card in missing], settings)
        damaged = await asyncio.to_thread(_damage, missing, settings)
    for why in damaged.values():
        log.warning("%s", why)
    if left := [card.name for card in missing if not at_hand(card)]:
        if settings.profile == "pretrained":
            raise WeightsError(f"no weights for {', '.join(left)}: connect and start again, or use HEARTH_PROFILE=starter")
        log.warning(
            "NO PRETRAINED WEIGHTS for %s: serving the starters, small models with weights of their own.", ", ".join(left)
        )
        log.warning("Connect and run: hearth pull %s (or set HEARTH_PROFILE=starter to be content).", " ".join(left))
    return catalogue.defaults(settings.profile, at_hand)


def _damage(cards: Iterable[Card], settings: Settings) -> dict[str, str]:
    """Model → what is wrong with the files that were pulled for it. Reads them all; those of others are read when they load."""
    found = {}
    for card in filter(is_remote, cards):
        try:
            checked(card, settings)
        except Damaged as error:
            found[card.name] = error.detail
        except WeightsError:
            pass  # missing
    return found


async def _any_reachable(cards: list[Card], settings: Settings) -> bool:
    return any(await asyncio.gather(*(asyncio.to_thread(reachable, settings, card) for card in cards)))


async def _pull(names: list[str], settings: Settings) -> None:
    """In a process of its own, whose progress bars the user sees."""
    environment = env.inherited_environment() | settings.to_environment() | {"PYTHONPATH": search_path()}
    process = await asyncio.create_subprocess_exec(*leashed_command("app", "pull", *names), env=environment)
    try:
        await process.wait()
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it still runs, and wait: a loop that closes before a child of its has ended says so."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _find(card: Card, settings: Settings) -> Files:
    try:
        return await asyncio.to_thread(checked, card, settings)
    except WeightsError:
        if not is_remote(card):
            raise
    log.info("pulling %s", card.name)
    await _pull([card.name], settings)
    return await asyncio.to_thread(checked, card, settings)


async def _devices(settings: Settings) -> list[str]:
    """What `auto` finds. Asked in a process of its own: the supervisor imports no torch."""
    if settings.devices != ("auto",):
        return list(settings.devices)
    if not _has_nvidia():  # no driver: saves the second that importing torch takes
        return ["cpu"]
    environment = env.inherited_environment() | {"PYTHONPATH": search_path()}
    ask = leashed_command("app.engine.device")
    process = await asyncio.create_subprocess_exec(*ask, env=environment, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await process.communicate()
    finally:
        await _end(process)
    return out.decode().split() or ["cpu"]


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists()  # the driver's own file


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise Invalid(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); set HEARTH_PORT to a free one"
        ) from error
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening
