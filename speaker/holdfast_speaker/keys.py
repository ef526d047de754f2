# SPDX-License-Identifier: Apache-2.0
"""The directory with the advert keys: a mounted Secret, or files of one's own.

One file per key, named by its id from 1 to 255. Its content is the key: ``hex:`` and digits, or the bytes
themselves; newlines at its end don't count (keepalived reads the same files). 32 random bytes are right.
Names that begin with a dot are Kubernetes' own and passed over.

Read again every two seconds. What can't be read, or is no key, is named with its reason, and the last good
key of that id stays; a directory without any key changes nothing at all.
"""

import asyncio
import binascii
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from holdfast_speaker.alarm import now_us
from holdfast_speaker.vrrp.keyring import HIGHEST_ID
from holdfast_speaker.vrrp.seal import Seal

log = logging.getLogger(__name__)

REREAD_S: Final = 2.0
LEAST_BYTES: Final = 16
MOST_BYTES: Final = 4096  # of a file; a key longer than 64 bytes counts as its SHA-256 (RFC 2104)
_MOST_FILES: Final = 1024
_HEX: Final = b"hex:"


class KeysError(Exception):
    """There is no key to begin with; the message says what is wrong with the directory."""


class KeyFiles:
    """Keeps the keys and the clock of a ``Seal`` right."""

    def __init__(self, directory: Path, seal: Seal, *, clock: Callable[[], int] = now_us) -> None:
        self._directory = directory
        self._seal = seal
        self._clock = clock
        self._last: dict[int, bytes] = {}
        self._faults: dict[str, str] = {}

    def start(self) -> None:
        """Reads the keys for the first time. KeysError when there is none."""
        self._adopt(*read(self._directory))
        if not self._last:
            why = "; ".join(f"{name}: {fault}" for name, fault in sorted(self._faults.items()))
            raise KeysError(f"no advert key in {self._directory}: {why or 'it has no file named 1 to 255'}")

    async def run(self) -> None:
        """Read again for ever, in a thread: a slow disk must not stop the loop."""
        while True:
            await asyncio.sleep(REREAD_S)
            self._adopt(*await asyncio.to_thread(read, self._directory))

    def _adopt(self, found: Mapping[int, bytes], faults: dict[str, str]) -> None:
        """Good files count; a bad one leaves the last good key of its id in force."""
        for name, why in faults.items():
            if self._faults.get(name) != why:
                log.warning(
                    "advert key %s is refused: %s; the last good one stays", self._directory / name, why
                )
        self._faults = faults
        kept = {key_id: key for key_id, key in self._last.items() if str(key_id) in faults}
        keys = {**kept, **found} if found else self._last
        self._last = keys
        now = self._clock()
        self._seal.wall_offset_us = time.time_ns() // 1000 - now
        if self._seal.keyring.renew(keys, now):
            signing = self._seal.keyring.signing(now)
            log.info(
                "advert keys %s, signing with %s; a new one signs after five minutes",
                ", ".join(map(str, sorted(keys))),
                signing.id if signing else "none",
            )


def read(directory: Path) -> tuple[dict[int, bytes], dict[str, str]]:
    """The keys by their ids, and what is wrong with the other files, by their names. Never raises."""
    keys: dict[int, bytes] = {}
    faults: dict[str, str] = {}
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as error:
        return {}, {"": error.strerror or str(error)}
    for name in names[:_MOST_FILES]:
        if not (name.isascii() and name.isdigit() and name == str(int(name)) and 0 < int(name) <= HIGHEST_ID):
            faults[name] = f"its name is no key id: must be 1 to {HIGHEST_ID}"
            continue
        try:
            keys[int(name)] = key_in(_content(directory / name))
        except (OSError, ValueError) as error:
            faults[name] = getattr(error, "strerror", None) or str(error)
    return keys, faults


def _content(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES} bytes")
    return content


def key_in(content: bytes) -> bytes:
    """The key that a file with this content holds. ValueError says why it is none, and nothing of it."""
    key = content.rstrip(b"\r\n")
    if key.startswith(_HEX):
        try:
            key = binascii.unhexlify(key.removeprefix(_HEX))
        except binascii.Error:
            raise ValueError("after hex: there must be an even number of hexadecimal digits") from None
    if len(key) < LEAST_BYTES:
        raise ValueError(f"its key is {len(key)} bytes long: must be at least {LEAST_BYTES}")
    return key
