# SPDX-License-Identifier: Apache-2.0
"""Inputs made wrong. Everything comes from the ``Random`` it is given."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any, Final

LONGEST: Final = 70_000  # bytes of an input, so that a campaign does not grow without end
_BYTES: Final = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS: Final = (0, 1, 2, 7, 8, 27, 28, 29, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)

Change = Callable[[Random, bytearray, Sequence[bytes]], None]


def _place(rng: Random, data: bytearray) -> int:
    return int(rng.random() * len(data))


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_place(rng, data)] ^= 1 << int(rng.random() * 8)


def _set(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_place(rng, data)] = _BYTES[int(rng.random() * len(_BYTES))]


def _any(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_place(rng, data)] = int(rng.random() * 256)


def _lie(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """A length, a count, a type: two bytes of either order with a value from the edge."""
    at = _place(rng, data)
    word = _WORDS[int(rng.random() * len(_WORDS))] if rng.random() < 0.7 else len(data) - at
    data[at : at + 2] = (word & 0xFFFF).to_bytes(2, "big" if rng.random() < 0.5 else "little")


def _cut(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


def _drop(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, data)
    del data[at : at + 1 + int(rng.random() * 8)]


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(1 + int(rng.random() * 28))


def _append(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data += rng.randbytes(1 + int(rng.random() * 64))


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, data)
    piece = bytes(data[at : at + 1 + int(rng.random() * 40)])
    data[at:at] = piece * (1 << int(rng.random() * 9))


def _splice(rng: Random, data: bytearray, pool: Sequence[bytes]) -> None:
    other = pool[int(rng.random() * len(pool))]
    data[_place(rng, data) :] = other[int(rng.random() * (len(other) + 1)) :]


_CHANGES: Final[tuple[Change, ...]] = (
    *(_flip, _flip, _set, _any, _lie, _lie),
    *(_cut, _drop, _insert, _append, _repeat, _splice),
)


def damaged(rng: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """One to four changes; never empty by itself, never longer than LONGEST."""
    whole = bytearray(data)
    for _ in range(1 + int(rng.random() ** 2 * 4)):
        if not whole:
            whole += rng.randbytes(1 + int(rng.random() * 60))
        _CHANGES[int(rng.random() * len(_CHANGES))](rng, whole, pool)
    return bytes(whole[:LONGEST])


# --- JSON -----------------------------------------------------------------------------------------

_DEEP: Final = '"@deep@"'
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 255, 256, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(1.5, 1e308, -0.0, "", " ", "\0", "x", "é", "\ud800", "0", "null", "x" * 300, "a" * 60_000),
    *("192.0.2.1", "192.0.2.1/24", "::1", "::ffff:192.0.2.1", "fe80::1", "01:00:5e:00:00:01", "@deep@"),
    *(
        "02:11:22:33:44:55",
        "02:AA:00:00:00:64",
        "00:00:00:00:00:00",
        "02:11:22:33:44:5",
        "VRRP",
        "VirtualMAC",
    ),
    *([], {}, [None], {"": None}, [[]], [{}] * 300, ["192.0.2.1"] * 300),
)
_DEPTHS: Final = (10, 100, 900, 1100, 5_000, 30_000)


def damaged_json(rng: Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """JSON with some of its values replaced, removed, doubled or swapped; where it is none, bytes."""
    if rng.random() < 0.3:
        return damaged(rng, data, pool)
    try:
        whole = json.loads(data)
        for _ in range(1 + int(rng.random() ** 2 * 4)):
            whole = _changed(rng, whole)
        text = json.dumps(whole)
    except (ValueError, RecursionError):  # no JSON, or one that was made deep before
        return damaged(rng, data, pool)
    if _DEEP in text:
        depth = _DEPTHS[int(rng.random() * len(_DEPTHS))]
        opened, closed = ("[", "]") if rng.random() < 0.5 else ('{"a":', "}")
        text = text.replace(_DEEP, opened * depth + "1" + closed * depth, 1)
    if rng.random() < 0.05:
        return damaged(rng, text.encode(), pool)
    return text.encode()[: LONGEST * 3]


def _changed(rng: Random, whole: Any) -> Any:
    """The same with one value somewhere in it changed."""
    if not isinstance(whole, dict | list) or not whole or rng.random() < 0.1:
        return _value(rng)
    keys = list(whole) if isinstance(whole, dict) else list(range(len(whole)))
    key = keys[int(rng.random() * len(keys))]
    if rng.random() < 0.6:
        whole[key] = _changed(rng, whole[key])
        return whole
    change = int(rng.random() * 5)
    if change == 0:
        del whole[key]
    elif change == 1 and isinstance(whole, list):
        whole[:] = deepcopy((whole * (1 << int(rng.random() * 9)))[:600])
    elif change == 2:
        other = keys[int(rng.random() * len(keys))]
        whole[key], whole[other] = whole[other], whole[key]
    elif change == 3 and isinstance(whole, dict):
        whole[f"{key}x" if rng.random() < 0.5 else str(rng.random())] = whole.pop(key)
    else:
        whole[key] = _value(rng)
    return whole


def _value(rng: Random) -> Any:
    return deepcopy(_VALUES[int(rng.random() * len(_VALUES))])
