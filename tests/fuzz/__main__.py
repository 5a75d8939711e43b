"""Runs the fuzzers: `python -m tests.fuzz [--executions 1000000] [--targets image,audio] [--seed 1] [--keep]`.

Each target runs in a process of its own, bounded in memory, which a watchdog ends when one execution takes too much of the
processor's time (not of the clock's: machines are busy). What fails is kept in `corpus/<target>`, and tried by every later run.
Inputs that are answered in a new way are changed further; `--keep` puts the first small ones of each target into
`corpus/<target>.zip`, with which every later run begins.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import mmap
import os
import random
import re
import resource
import struct
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
_ROOM = 768 << 20  # bytes that a target may allocate beyond what it begins with
_NOTE = struct.Struct("<QQ")  # executions done, bytes of the input that is tried now
_POOL = 100
_TOLD = 5  # findings of one kind are alike
_WAYS = 100  # inputs that are kept of a target because each is answered in a way of its own, of so many bytes at most
_SMALL = 4096


def kept(name: str) -> list[bytes]:
    """The corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] + ways(name)


def ways(name: str) -> list[bytes]:
    """That part of it which was answered in ways of its own."""
    with suppress(FileNotFoundError), zipfile.ZipFile(CORPUS / f"{name}.zip") as file:
        return [file.read(entry) for entry in file.namelist()]
    return []


def keep_ways(name: str, found: Iterable[bytes]) -> None:
    """Those that are small join that part while there is room."""
    part = dict.fromkeys([*ways(name), *(data for data in found if len(data) <= _SMALL)])
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for data in list(part)[:_WAYS]:
            file.writestr(zipfile.ZipInfo(hashlib.sha256(data).hexdigest()[:12]), data, zipfile.ZIP_DEFLATED)


def outcome(target: Target, data: bytes) -> str:
    """How the target answers, in a few words. Raises what it should not."""
    try:
        said = f"taken {target.run(data)}"
    except target.allowed as error:
        said = f"{type(error).__name__} {error}"
    return re.sub(r"\d+|'.*'|\".*\"", "#", said[:120])


def trial(
    name: str, count: int, seed: int, begin: int = 0, note: mmap.mmap | None = None, *, keeping: bool = False
) -> Counter[str]:
    """`count` executions in this process. Failures are kept and counted by their place."""
    logging.disable()  # the parser of forms tells of each mistake
    target, counts = TARGETS[name], Counter[str]()
    pool = [*target.seeds(), *kept(name)]
    known, seen = len(pool), set[str]()
    for number in range(begin, count):
        chance = random.Random(f"{seed} {name} {number}")
        data = pool[number] if number < len(pool) and begin == 0 else mutated(pool, target.words, chance)
        if note is not None:
            note[: _NOTE.size + len(data)] = _NOTE.pack(number, len(data)) + data
        try:
            said = outcome(target, data)
        except Exception as error:  # noqa: BLE001  this is what we look for
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            counts[f"FAILED {place}"] += 1
            if counts[f"FAILED {place}"] <= _TOLD:
                keep(name, data)
                print(f"{name}: {place}: {str(error)[:200]}", flush=True)
            continue
        taken = said.startswith("taken")
        counts["taken" if taken else "refused"] += 1
        if said not in seen:
            seen.add(said)
            if (taken or len(pool) - known < _POOL) and number >= len(pool):  # what is refused would soon be all of it
                pool.append(data)
    if keeping:
        keep_ways(name, pool[known:])
    counts["ways"] = len(seen)
    return counts


def keep(name: str, data: bytes) -> Path:
    """A failure becomes part of the corpus."""
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def watched(name: str, count: int, seed: int, *, keeping: bool = False) -> Counter[str]:
    """The same in a process of its own, which is begun again after a hang or a crash."""
    counts, begin = Counter[str](), 0
    with mmap.mmap(-1, 1 << 20) as note, mmap.mmap(-1, 1 << 16) as result:
        while begin < count:
            pid = os.fork()
            if pid == 0:
                _child(name, count, seed, begin, note, result, keeping)
            status = _wait(pid, TARGETS[name].seconds, note)
            done, size = _NOTE.unpack(note[: _NOTE.size])
            if status == 0:
                said = result[:].rstrip(b"\0").decode()
                return counts + Counter({line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in said.splitlines()})
            path = keep(name, note[_NOTE.size : _NOTE.size + size])
            print(f"{name}: ended by {'the watchdog' if status == -9 else status} at {done}: {path.name}", flush=True)
            counts[f"FAILED status {status}"] += 1
            begin = done + 1
    return counts


def _child(name: str, count: int, seed: int, begin: int, note: mmap.mmap, result: mmap.mmap, keeping: bool) -> None:
    status = 1
    try:
        text = Path("/proc/self/status").read_text() if sys.platform == "linux" else ""
        if found := re.search(r"VmData:\s+(\d+)", text):
            most = (int(found[1]) << 10) + _ROOM
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        counts = trial(name, count, seed, begin, note, keeping=keeping)
        said = "\n".join(f"{what} {number}" for what, number in counts.items()).encode()
        result[: len(said)] = said
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _wait(pid: int, seconds: float, note: mmap.mmap) -> int:
    process, before, spent = psutil.Process(pid), -1, 0.0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = sum(process.cpu_times()[:2])
        done = _NOTE.unpack(note[: _NOTE.size])[0]
        if done != before:
            before, spent = done, now
        elif now - spent > seconds:
            process.kill()
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    wanted = parser.parse_args()
    failed = all_of_them = 0
    for name in wanted.targets.split(","):
        begin = time.monotonic()
        count = max(1, wanted.executions * TARGETS[name].share // 1000)
        counts = watched(name, count, wanted.seed, keeping=wanted.keep)
        wrong = {what: number for what, number in counts.items() if what.startswith("FAILED")}
        failed += sum(wrong.values())
        all_of_them += count
        line = f"{counts['taken']} taken, {counts['refused']} refused in {counts['ways']} ways"
        print(f"{name:10} {count:8} executions, {line}; {time.monotonic() - begin:.0f} s{wrong or ''}", flush=True)
    print(f"{all_of_them} executions, {failed} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
