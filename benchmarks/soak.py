"""Does it grow? Mixed load (pictures, texts, speech), faults and tuning jobs for half an hour; what all processes hold, sampled.

    python benchmarks/soak.py [--minutes 30] [--every 10]           make soak, make soak SOAK_MINUTES=5

Every answer is compared with the known one. Workers, nursery and frontends are killed, a model is loaded and unloaded. Slopes
are of least squares over the samples of the first two thirds, but for a fifth in which allocators and caches fill. What comes
and goes has no part in them: tuners, and workers of models that are loaded, tuned and replaced meanwhile. Whether one of these
is there when it is looked moves a slope by more than its bound. Of these there are never more than a few; at the end two
versions of the tuned model, and when that is unloaded, none. What is out of bounds (bars.py) ends the program with 1.

In the last third nobody is killed: what a frontend, a worker or the nursery leaks, and takes with it when it is killed, is seen
in the slope of its kind within lives (growth.py), for which all samples count, and in the descriptors and threads that it has
more at the end; what is shared, in what all have more. It needs a run of a quarter of an hour or more.
All memory together then shows nothing: a nursery that lives takes torch in, once, which is a third of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bars
import faults
import httpx
from bare import find
from beside import pictures
from callers import Callers, Question, asked
from common import STARTERS, home, options, report, settled, started, table
from growth import Held, Lives, held, named, slope
from inputs import ask, item, picture, speech

Slopes = dict[str, float]

SAMPLE_S = 5.0
_SETTLING = 0.2  # of the samples: not counted
_KILLING = 2 / 3  # of the time; nobody is killed in the rest
_ENOUGH_MIN = 15.0  # a run, whose rest is a life that is long enough
_NAMED = len("all-mini")  # what the kernel keeps of a model's name in its workers'
_LASTING = {"supervisor", "nursery", "http", *(name[:_NAMED] for name in STARTERS.split(","))}
_COUNTED = ("descriptors", "threads")  # within lives
_SHARED = "shared MiB"  # of all together, as if they were a process
_MOVABLE, _TUNED = "digits", "soaked"  # loaded and unloaded; made by each job, and replaced by the next one's
_PASSING = tuple(f"hearth {name}" for name in ("tune", "choosing", _MOVABLE, _TUNED))
_MOST_TOLD = 3
_LEAVING_S, _LOOKS = 90.0, 3  # an old version stays for half a minute, a tuner ends its step; a fork has no name for a moment


def questions(url: str, folder: Path) -> list[Question]:
    """Of each starter its own sample and one more, with the answers that they get now."""
    found = []
    for name, more in zip(STARTERS.split(","), (picture(0.3), "a long way home in the rain", speech(3.0)), strict=True):
        card, files = find(name, folder)
        for call in [ask(card, one) for one in (item(card, files), more)]:
            media = "application/octet-stream" if isinstance(call.item, bytes) else "application/json"
            found.append(asked(url, call.path, call.body, media))
    return found


class Trouble:
    """One fault after the other, and one job after the other."""

    def __init__(self, url: str, server: int, callers: Callers, every_s: float) -> None:
        self.felt_s: list[float] = []
        self.jobs: list[str] = []
        self.left: list[str] = []
        self._server = server
        self._callers = callers
        self._every_s = every_s
        self._over = threading.Event()
        self._http = httpx.Client(base_url=url, timeout=60)
        self._job = ""
        names = [*STARTERS.split(","), "nursery", "http"]
        self._faults: list[Callable[[], object]] = [lambda name=name: faults.kill(server, name) for name in names]  # type: ignore[misc]
        self._changes = [lambda verb=verb: self._http.post(f"/models/{_MOVABLE}/{verb}") for verb in ("load", "unload")]  # type: ignore[misc]
        self._faults += self._changes
        self._work = ThreadPoolExecutor(1).submit(self._run)

    def _run(self) -> None:
        chance = random.Random(0)
        while not self._over.wait(self._every_s):
            with contextlib.suppress(LookupError):  # it is just being replaced, or unloaded
                self.felt_s.append(self._callers.felt(chance.choice(self._faults)))
            self._tune()

    def _tune(self) -> None:
        """See how the job is, and begin the next one when it is over."""
        state = self._http.get(f"/finetune/{self._job}").json()["state"] if self._job else "succeeded"
        if state not in ("succeeded", "failed", "cancelled"):
            return
        if self._job:
            self.jobs.append(state)
            self._http.delete(f"/finetune/{self._job}")
        spec = {"name": _TUNED, "base": "cifar-resnet", "method": "head", "epochs": 2}
        parts = {"spec": (None, json.dumps(spec)), "dataset": ("data.zip", pictures(60))}
        self._job = self._http.post("/finetune", files=parts).raise_for_status().json()["id"]

    def first_job(self, patience_s: float) -> None:
        """Wait until its model serves. Raises TimeoutError."""
        until = time.monotonic() + patience_s
        while self._http.get(f"/models/{_TUNED}").json().get("state") != "ready":
            self.wait(SAMPLE_S)
            if time.monotonic() > until:
                raise TimeoutError(f"no job was finished in {patience_s:g} s")

    def kill_no_more(self) -> None:
        """Only changes from now on."""
        self._faults = self._changes

    def wait(self, seconds: float) -> None:
        """So long. Raises what ended it before that."""
        if self._work in wait([self._work], seconds).done:
            self._work.result()

    def close(self) -> None:
        """No more."""
        self._over.set()
        try:
            self._work.result()
            self._tidy()
        finally:
            self._http.close()

    def _tidy(self) -> None:
        """Ask for nothing of what comes and goes, and note which processes are there all the same."""
        if self._job:
            self._http.post(f"/finetune/{self._job}/cancel")
        self._http.post(f"/models/{_MOVABLE}/unload")
        self._here("hearth tune", "hearth choosing", most=0)  # what was just finished is taken into service
        versions = self._here(f"hearth {_TUNED}", most=2)  # that and the one to go back to; the others left by themselves
        self._http.post(f"/models/{_TUNED}/unload")
        self.left = versions[2:] + self._here(*_PASSING, most=0)

    def _here(self, *names: str, most: int) -> list[str]:
        """Processes so called, once there were at most so many for a few looks; or when time is over."""
        until, quiet = time.monotonic() + _LEAVING_S, 0
        while True:
            found = [name for _, name in named(self._server) if name.startswith(names)]
            quiet = quiet + 1 if len(found) <= most else 0
            if quiet == _LOOKS or time.monotonic() > until:
                return found
            time.sleep(1)


@contextlib.contextmanager
def soaking(url: str, server: int, folder: Path, wanted: Any) -> Iterator[tuple[Callers, Trouble]]:
    with Callers(url, questions(url, folder), count=wanted.callers) as callers:
        trouble = Trouble(url, server, callers, wanted.every)
        try:
            yield callers, trouble
        finally:
            trouble.close()


def main() -> None:
    wanted = options(__doc__, minutes=30.0, every=10.0, callers=3, patience=600.0)
    times_s: list[float] = []
    samples: list[Held] = []
    lives = Lives()
    with home() as folder, started(home=str(folder), models=STARTERS) as (url, process, _):
        for name in STARTERS.split(","):  # what is compiled at first would look like growth
            settled(url, name, wanted.patience)
        with soaking(url, process.pid, folder, wanted) as (callers, trouble):
            trouble.first_job(wanted.patience)  # its model comes in, and torch with it: that, too, would look like growth
            began = time.monotonic()
            while (now := time.monotonic() - began) < 60 * wanted.minutes:
                times_s.append(now)
                samples.append(held(process.pid, _PASSING))
                lives.look(process.pid, _PASSING, now)
                if now > _KILLING * 60 * wanted.minutes:
                    trouble.kill_no_more()
                    lives.counted(_SHARED, "all", process.pid, now, samples[-1].shared_mib)
                trouble.wait(SAMPLE_S)
    killing = sum(at <= _KILLING * 60 * wanted.minutes for at in times_s)
    counted = slice(int(_SETTLING * killing), killing)
    kinds = [kind for kind in asdict(samples[0]) if kind != "passing"]
    slopes = {kind: slope(times_s[counted], [getattr(one, kind) for one in samples[counted]]) for kind in kinds}
    show(samples, slopes, lives, callers, trouble, wanted.minutes)
    figures = {f"{kind}, growth an hour": value for kind, value in slopes.items()}
    figures |= of_lives(lives, _LASTING if wanted.minutes >= _ENOUGH_MIN else ())
    figures |= {"processes left": len(trouble.left), "passing processes at a time": max(one.passing for one in samples)}
    figures |= {"requests failed": callers.counts.bad, "a fault was felt for, s": max(trouble.felt_s, default=math.inf)}
    figures |= {f"jobs {state}": trouble.jobs.count(state) for state in ("succeeded", "failed")}
    bars.hold(figures | {"faults a minute": len(trouble.felt_s) / wanted.minutes}, bars.SOAK)


def of_lives(lives: Lives, lasting: Collection[str]) -> dict[str, float]:
    """What is held to a bar; `lasting`: the kinds that must have lived for long, of which none may be unknown in anything."""
    grown, gained = lives.slopes(), {what: lives.gained(what) for what in _COUNTED}
    unknown = math.nan if lasting else 0.0
    return {
        "within lives, growth an hour": max(grown.values(), default=unknown),
        **{f"{what} gained within a life": max(one.values(), default=unknown) for what, one in gained.items()},
        f"{_SHARED} gained while nobody is killed": lives.gained(_SHARED).get("all", unknown),
        "kinds not judged": len(set(lasting) - set(grown).intersection(*gained.values())),
    }


def show(samples: list[Held], slopes: Slopes, lives: Lives, callers: Callers, trouble: Trouble, minutes: float) -> None:
    rows = []
    for kind in asdict(samples[0]):
        values = [getattr(one, kind) for one in samples]
        growth = f"{slopes[kind]:+.1%}" if kind in slopes else ""
        rows.append([kind, *(f"{value:.0f}" for value in (values[0], values[-1], min(values), max(values))), growth])
    table(["of all lasting processes", "first", "last", "least", "most", "an hour"], rows)
    grown, gained, shared = lives.slopes(), {what: lives.gained(what) for what in _COUNTED}, {_SHARED: lives.gained(_SHARED)}
    rows = [
        [kind, f"{grown[kind]:+.1%}", *(f"{one.get(kind, math.nan):+g}" for one in gained.values())] for kind in sorted(grown)
    ]
    table(["within lives", "memory, an hour", "descriptors", "threads"], rows)
    for told in callers.counts.told[:_MOST_TOLD]:
        print(told)
    counts = callers.counts
    worst_s = max(trouble.felt_s, default=0.0)
    flat = ", ".join(f"{kind} {growth:+.1%}/h" for kind, growth in slopes.items())
    most, kind = max(((growth, kind) for kind, growth in grown.items()), default=(math.nan, "none"))
    more = ", ".join(f"{max(one.values(), default=math.nan):+.3g} {what}" for what, one in (gained | shared).items())
    print(
        f"soak: {minutes:g} min, {counts.right} right, {counts.bad} not, {len(trouble.felt_s)} faults (felt at most "
        f"{worst_s:.2f} s), {trouble.jobs.count('succeeded')} jobs, {len(trouble.left)} processes left; {flat}; "
        f"within lives at most {most:+.1%}/h ({kind}), {more}\n"
    )
    extra = {
        "minutes": minutes,
        "faults": len(trouble.felt_s),
        "jobs": len(trouble.jobs),
        "felt_s": trouble.felt_s,
        "left": trouble.left,
        "every_s": SAMPLE_S,
        "held": {kind: [round(getattr(one, kind)) for one in samples] for kind in asdict(samples[0])},
        "growth_per_hour": slopes,
        "growth_within_lives": grown,
        "gained_within_lives": gained | shared,
    }
    report("soak", **extra, **counts.figures(), first=asdict(samples[0]), last=asdict(samples[-1]))


if __name__ == "__main__":
    main()
