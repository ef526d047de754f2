# SPDX-License-Identifier: Apache-2.0
"""The keys that are live on this node, and which of them signs.

Keys reach the nodes of a cluster one by one: a Secret takes up to two minutes to each. So a new key is
accepted at once but signs only after SETTLING_US, and one that is withdrawn is accepted for RETIRING_US
more. A node that knows both is understood by one that is still behind and by one that is already ahead,
even where a key was replaced under its old id.

The newest key is the one with the highest id; ids count on from 255 to 1: of {254, 255, 1} it is 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_speaker.units import NEVER_US, SECOND_US

HIGHEST_ID: Final = 255
SETTLING_US: Final = 300 * SECOND_US
RETIRING_US: Final = 2 * SETTLING_US
_MOST_RETIRED: Final = 16


@dataclass(slots=True)
class Key:
    """``until_us`` is NEVER_US until it is withdrawn."""

    id: int
    secret: bytes
    since_us: int
    until_us: int = NEVER_US


class Keyring:
    """Empty at first: nothing is signed."""

    def __init__(self) -> None:
        self._keys: list[Key] = []

    def __bool__(self) -> bool:
        return bool(self._keys)

    def renew(self, secrets: Mapping[int, bytes], now_us: int) -> bool:
        """These are the keys from now on, by id; whether that is news."""
        self._forget(now_us)
        live = {(key.id, key.secret): key for key in self._keys if key.until_us == NEVER_US}
        news = secrets.keys() != {key_id for key_id, _ in live}
        for key_id, secret in sorted(secrets.items()):
            if live.pop((key_id, secret), None) is None:
                news = True
                self._keys.append(Key(key_id, secret, now_us))
        for key in live.values():
            key.until_us = now_us + RETIRING_US
        retired = [key for key in self._keys if key.until_us != NEVER_US]
        for key in retired[:-_MOST_RETIRED]:
            self._keys.remove(key)
        return news

    def accepted(self, key_id: int, now_us: int) -> Iterator[bytes]:
        """The secrets an advert with this key id may be signed with: one, or the one before it too."""
        return (key.secret for key in self._keys if key.id == key_id and now_us < key.until_us)

    def signing(self, now_us: int) -> Key | None:
        """The key to sign with: one that the others have by now."""
        self._forget(now_us)
        live = [key for key in self._keys if key.until_us == NEVER_US]
        settled = [key for key in live if now_us - key.since_us >= SETTLING_US]
        if settled:
            return _newest(settled)
        retired = [key for key in self._keys if key.until_us != NEVER_US]
        used = [key for key in retired if key.until_us - RETIRING_US - key.since_us >= SETTLING_US]
        if used:
            return max(used, key=lambda key: key.until_us)
        if retired:
            return min(retired, key=lambda key: key.since_us)
        return _oldest(live)

    def _forget(self, now_us: int) -> None:
        if any(key.until_us <= now_us for key in self._keys):
            self._keys = [key for key in self._keys if now_us < key.until_us]


def _newest(keys: list[Key]) -> Key:
    """The one before the widest gap in the circle of ids."""
    ids = sorted(key.id for key in keys)
    after = dict(zip(ids, [*ids[1:], ids[0] + HIGHEST_ID], strict=True))
    return max(keys, key=lambda key: (after[key.id] - key.id, key.id))


def _oldest(keys: list[Key]) -> Key | None:
    """The one after the newest in the circle of ids."""
    if not keys:
        return None
    newest = _newest(keys).id
    return min(keys, key=lambda key: (key.id - newest - 1) % HIGHEST_ID)
