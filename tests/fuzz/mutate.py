"""One input → another one, a little wrong. Everything comes from the chance that is given, so that a number repeats an input."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ODD = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
_LONGEST = 1 << 16


def mutated(pool: Sequence[bytes], words: Sequence[bytes], chance: random.Random) -> bytes:
    """One to eight changes of one of the pool; more often few, because many seldom leave anything that is looked at."""
    data = bytearray(chance.choice(pool))
    for _ in range(1 << min(chance.randrange(4), chance.randrange(4))):
        chance.choice(_CHANGES)(data, pool, words, chance)
    return bytes(data[:_LONGEST])


def _place(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(data)) if data else 0


def _span(data: bytearray, chance: random.Random) -> slice:
    start = _place(data, chance)
    return slice(start, start + (1 << chance.randrange(10)))


def _flip(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] = chance.randrange(256)


def _number(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    value, size = chance.choice(_ODD), chance.choice((1, 2, 4, 8))
    at = _place(data, chance)
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, chance.choice(("little", "big")))


def _drop(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    del data[_span(data, chance)]


def _cut(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _repeat(data: bytearray, _: object, __: object, chance: random.Random) -> None:
    span = _span(data, chance)
    data[span.start : span.start] = bytes(data[span]) * chance.choice((1, 2, 50))


def _word(data: bytearray, _: object, words: Sequence[bytes], chance: random.Random) -> None:
    if words:
        word, at = chance.choice(words), _place(data, chance)
        data[at : at + chance.choice((0, len(word)))] = word


def _splice(data: bytearray, pool: Sequence[bytes], _: object, chance: random.Random) -> None:
    other = bytearray(chance.choice(pool))
    data[_span(data, chance)] = other[_span(other, chance)]


_CHANGES = (_flip, _flip, _set, _number, _drop, _cut, _repeat, _word, _word, _splice)
