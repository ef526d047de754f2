# SPDX-License-Identifier: Apache-2.0
"""The plan's copy on this host, for a start without the API. Written whole; believed whole or not at all."""

import asyncio
import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from holdfast_api.decode import decode_router
from holdfast_api.types import VirtualRouter
from holdfast_speaker.events import PlanRestored

log = logging.getLogger(__name__)

NAME: Final = "plan.json"
_LAYOUT: Final = 1
_LARGEST: Final = 32 * 1024 * 1024  # bytes
_MOST_ROUTERS: Final = 255
_DELAY_S: Final = 0.1


class _Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layout: int
    node: str
    routers: tuple[msgspec.Raw, ...]
    terms: dict[str, int]


class PlanFile:
    """``ports.Plan`` in a directory that outlives the process but not the host (``/run/holdfast``)."""

    def __init__(self, directory: Path, node: str) -> None:
        self._path = directory / NAME
        self._node = node
        self._latest: tuple[tuple[VirtualRouter, ...], tuple[tuple[str, int], ...]] | None = None
        self._changed = asyncio.Event()

    def restore(self) -> PlanRestored | None:
        """The last plan saved for this node; None when there is none or it is not to be believed."""
        try:
            plan = self._read()
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
            log.warning("%s is ignored: %s; the plan will come from the API", self._path, error)
            return None
        return plan

    def _read(self) -> PlanRestored:
        with self._path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("it is no regular file")
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                raise ValueError("somebody else can write it")
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it is longer than {_LARGEST} bytes")
        plan = msgspec.json.decode(content, type=_Plan)
        if plan.layout != _LAYOUT:
            raise ValueError(f"its layout is {plan.layout}, this version knows {_LAYOUT}")
        if plan.node != self._node:
            raise ValueError(f"it is the plan of node {plan.node}, this is {self._node}")
        if len(plan.routers) > _MOST_ROUTERS:
            raise ValueError(f"it has {len(plan.routers)} routers, at most {_MOST_ROUTERS} exist")
        if any(not 0 <= term < 1 << 62 for term in plan.terms.values()):
            raise ValueError("a term in it is out of range")
        return PlanRestored(tuple(map(decode_router, plan.routers)), plan.terms)

    def keep(self, routers: tuple[VirtualRouter, ...], terms: tuple[tuple[str, int], ...]) -> None:
        """To be saved soon by ``run``, or by ``flush``; of several the latest alone."""
        self._latest = routers, terms
        self._changed.set()

    async def run(self) -> None:
        """Save what is to be kept, in a thread, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_DELAY_S)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        self._changed.clear()
        latest, self._latest = self._latest, None
        if latest is not None:
            self.save(*latest)

    def save(self, routers: tuple[VirtualRouter, ...], terms: tuple[tuple[str, int], ...]) -> None:
        """Replace the file in one step, so that a crash leaves the old one or the new one. Never raises."""
        content = msgspec.json.encode(
            _Plan(
                _LAYOUT, self._node, tuple(msgspec.Raw(msgspec.json.encode(r)) for r in routers), dict(terms)
            )
        )
        fresh = self._path.with_name(f".{NAME}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            fresh.replace(self._path)
        except OSError as error:
            log.warning("the plan cannot be kept in %s: %s", self._path.parent, error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
