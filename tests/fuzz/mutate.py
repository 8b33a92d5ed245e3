"""Spoils inputs at random, from a seed: mostly in place, with the numbers that break arithmetic."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

NUMBERS = (
    0, 1, 2, 3, 7, 8, 15, 16, 39, 40, 41, 63, 64, 100, 127, 128, 255, 256, 512, 4095, 4096, 32767, 32768,
    65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 - 1, 2**53, 2**61, 2**62, 2**63 - 1,
    2**63, 2**64 - 1,
)  # fmt: skip
TEXTS = (
    "",
    "x",
    "0" * 64,
    "\0",
    "../x",
    "PQ2x8",
    "none",
    "SQ8",
    "kind",
    "2024-07-01T12:00:00Z",
    "ｆ" * 64,
    "\u202e",
)
TOKENS = (
    b"null", b"true", b"NaN", b"-0.0", b"1e999", b"[]", b"{}", b'""', b"[[", b"]]", b'"\\ud800"',
    b"9007199254740992", b",", b":", b"\\u0000", b"\xff",
)  # fmt: skip
LARGEST = 1 << 17


def mutate(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """``data`` spoilt one to four times; ``others`` are inputs to take pieces from."""
    spoilt = bytearray(data)
    if chance.random() < 0.5 and (changed := _as_json(data, chance)) is not None:
        spoilt = bytearray(changed)
        if chance.random() < 0.7:
            return bytes(spoilt)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not spoilt:
            spoilt = bytearray(chance.choice(others))
        chance.choice(_WAYS)(spoilt, chance, others)
    return bytes(spoilt[:LARGEST])


def _place(spoilt: bytearray, chance: random.Random) -> int:
    """Anywhere, half of the time near the start, where headers are, and half of it at a multiple of 4."""
    end = min(len(spoilt), 400) if chance.random() < 0.5 else len(spoilt)
    place = chance.randrange(max(end, 1))
    return place & ~3 if chance.random() < 0.5 else place


def _flip(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    spoilt[min(_place(spoilt, chance), len(spoilt) - 1)] ^= 1 << chance.randrange(8)


def _number(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    width = chance.choice((1, 2, 4, 4, 8, 8))
    place = _place(spoilt, chance)
    value = chance.choice(NUMBERS)
    if chance.random() < 0.3:
        value = int.from_bytes(spoilt[place : place + width], "little") + chance.choice((-8, -4, -1, 1, 4, 8))
    spoilt[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")[
        : len(spoilt) - place
    ]


def _copy(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    """Bytes from elsewhere in the input, or from another, in place of as many."""
    source = spoilt if chance.random() < 0.5 else chance.choice(others)
    size = min(chance.choice((4, 8, 16, 64, 300)), len(source), len(spoilt))
    start, place = chance.randrange(len(source) - size + 1), chance.randrange(len(spoilt) - size + 1)
    spoilt[place : place + size] = bytes(source[start : start + size])


def _fill(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    place, size = _place(spoilt, chance), chance.choice((1, 4, 8, 32))
    spoilt[place : place + size] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))]) * min(
        size, len(spoilt) - place
    )


def _insert(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    place = _place(spoilt, chance)
    spoilt[place:place] = chance.choice((*TOKENS, bytes(8), chance.randbytes(4)))


def _delete(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    place = _place(spoilt, chance)
    del spoilt[place : place + chance.choice((1, 4, 8, 40))]


def _cut(spoilt: bytearray, chance: random.Random, others: list[bytes]) -> None:
    del spoilt[chance.randrange(len(spoilt)) :]


_WAYS = (_flip, _flip, _number, _number, _number, _number, _copy, _copy, _fill, _insert, _delete, _cut)


def _as_json(data: bytes, chance: random.Random) -> bytes | None:
    """What ``_changed_json`` gives; None where the JSON is too deep for that."""
    try:
        return _changed_json(data, chance)
    except RecursionError:
        return None


def _changed_json(data: bytes, chance: random.Random) -> bytes | None:
    """The input with one value of its JSON replaced, moved or removed; None where none is in it. The JSON may
    stand behind its length in 4 bytes, with other bytes after it."""
    start = 0 if data[:1] == b"{" else 4
    length = len(data) if not start else int.from_bytes(data[:4], "little")
    body = data[start : start + length]
    if body[:1] != b"{":
        return None
    try:
        value = json.loads(body)
    except ValueError:
        return None
    spots = list(_spots(value))
    if not spots:
        return None
    holder, key = chance.choice(spots)
    way = chance.random()
    if way < 0.5:
        holder[key] = _any_json(chance)
    elif way < 0.75:
        other, name = chance.choice(spots)
        holder[key] = deepcopy(other[name])
    elif isinstance(holder, dict) and way < 0.85:
        holder[chance.choice(TEXTS)] = holder.pop(key)
    else:
        del holder[key]
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return (len(text).to_bytes(4, "little") if start else b"") + text + data[start + length :]


def _spots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _spots(item)


def _any_json(chance: random.Random) -> object:
    kind = chance.randrange(8)
    if kind < 3:
        return chance.choice(NUMBERS) * chance.choice((1, 1, -1))
    if kind == 3:
        return chance.choice((0.5, -0.0, 1e300, float("nan"), True, False, None))
    if kind == 4:
        return chance.choice(TEXTS)
    if kind == 5:
        return [_any_json(chance) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {chance.choice(TEXTS): _any_json(chance)}
    return []
