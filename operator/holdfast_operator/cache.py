# SPDX-License-Identifier: Apache-2.0
"""What the API said last, decoded, and when each speaker last gave a sign of life.

Fed by lists, by kopf's events and by the answers to our own writes, in whatever order they come: an object
older than what is known changes nothing. Time comes in as an argument, monotonic seconds.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Final, Literal

import msgspec

from holdfast_api.decode import DecodeError, decode_router, decode_speaker, decode_virtual_ip
from holdfast_api.names import MOVE_TO_ANNOTATION, SPEAKER_LEASE_SECONDS
from holdfast_api.types import (
    Metadata,
    Speaker,
    SpeakerStatus,
    VirtualIPSpec,
    VirtualIPStatus,
    VirtualRouter,
)
from holdfast_operator.lease import LeaseSpec
from holdfast_operator.memory import Memory
from holdfast_operator.world import DrainRule, Node, Timely, Vip, World

log = logging.getLogger(__name__)

Kind = Literal["virtualips", "virtualrouters", "speakers", "nodes"]
KINDS: Final[tuple[Kind, ...]] = ("nodes", "speakers", "virtualips", "virtualrouters")
Key = tuple[str, str]  # namespace, name
Object = Mapping[str, Any]

SETTLING_S: Final = 10.0  # how long a speaker that has begun to listen is waited for
MOST_TOMBSTONES: Final = 10_000


@dataclass(slots=True)
class _Shelf:
    """One kind: the decoded objects, the version of each, and the versions at which others were deleted."""

    objects: dict[Key, Any] = field(default_factory=dict)
    versions: dict[Key, int] = field(default_factory=dict)
    tombstones: dict[Key, int] = field(default_factory=dict)
    complete: bool = False

    def put(self, key: Key, version: int, thing: object) -> object | None:
        """What was there before; the thing itself when it is old news."""
        if version < self.versions.get(key, 0) or version <= self.tombstones.get(key, -1):
            return thing
        before = self.objects.get(key)
        self.objects[key] = thing
        self.versions[key] = version
        return before

    def drop(self, key: Key, version: int) -> bool:
        if version < self.versions.get(key, 0):
            return False
        if len(self.tombstones) >= MOST_TOMBSTONES:
            self.tombstones.clear()
        self.tombstones[key] = version
        self.versions.pop(key, None)
        return self.objects.pop(key, None) is not None


@dataclass(slots=True)
class _Pulse:
    """A speaker's Lease as seen last, and when it changed before our eyes."""

    version: str
    duration_s: int
    at_s: float


class Cache:
    """Mutable, for one event loop. ``snapshot`` gives the frozen World."""

    def __init__(
        self, *, virtual_router_ids: range, now_s: float, drain_rule: DrainRule | None = None
    ) -> None:
        self.cluster_uid = ""  # as long as it can't be read
        self.memory = Memory()
        self._virtual_router_ids = virtual_router_ids
        self._drain_rule = drain_rule or DrainRule()
        self._ghosts: dict[str, SpeakerStatus] = {}  # what Speakers said last that are gone, by node
        self._shelves: dict[Kind, _Shelf] = {kind: _Shelf() for kind in KINDS}
        self._pulses: dict[str, _Pulse] = {}
        self._pulses_complete = False
        self._alive_at: dict[str, float] = {}
        self._taken_at: dict[tuple[str, str], float] = {}
        self._began_at: dict[str, float] = {}  # when a node was first seen listening, until it has listened
        self._judging_from_s = now_s + SPEAKER_LEASE_SECONDS

    # --- objects --------------------------------------------------------------------------------

    def seen(self, kind: Kind, raw: Object, now_s: float, *, listed: bool = False) -> bool:
        """An object as it is now. Whether the plan may depend on what is new in it.

        ``listed``: from a list, where it may have stood for long: no sign of life.
        """
        key, version = _identity(raw)
        shelf = self._shelves[kind]
        thing = self._with_past(decoded(kind, raw), shelf.objects.get(key), version)
        before = shelf.put(key, version, thing)
        if before is thing or (before is not None and _meaning(before) == _meaning(thing)):
            return False
        if isinstance(thing, Speaker):
            self._heard_from(thing, before, now_s, listed=listed)
        elif isinstance(thing, VirtualRouter):
            self.memory.router(thing, now_s)
        elif isinstance(thing, Vip):
            self.memory.request(thing.key, thing.metadata.annotations.get(MOVE_TO_ANNOTATION, ""), now_s)
        return True

    def _with_past(self, thing: object, before: object, version: int) -> object:
        """The object with what only its earlier version tells: since when it is as it is.

        A Speaker that was made anew, or can't be read, has not said that it let anything go.
        """
        if isinstance(thing, Node):
            mark = self._drain_rule.mark(thing)
            if not isinstance(before, Node):
                return thing
            same = mark == self._drain_rule.mark(before)
            return replace(thing, marked=before.marked if same or not mark else version)
        if isinstance(thing, Vip):
            if not isinstance(before, Vip):
                return thing
            wanted, old = (v.metadata.annotations.get(MOVE_TO_ANNOTATION, "") for v in (thing, before))
            return replace(thing, asked=before.asked if wanted == old or not wanted else version)
        if isinstance(thing, Speaker) and thing.status == SpeakerStatus():
            node = thing.metadata.name
            known = before.status if isinstance(before, Speaker) else self._ghosts.get(node)
            return Speaker(thing.metadata, known) if known is not None else thing
        return thing

    def deleted(self, kind: Kind, raw: Object) -> bool:
        key, version = _identity(raw)
        return self._drop(kind, key, version)

    def missing(self, kind: Kind, namespace: str, name: str) -> bool:
        """The API says there is none (404)."""
        key = (namespace, name)
        return self._drop(kind, key, self._shelves[kind].versions.get(key, 0))

    def _drop(self, kind: Kind, key: Key, version: int) -> bool:
        known = self._shelves[kind].objects.get(key)
        if not self._shelves[kind].drop(key, version):
            return False
        if isinstance(known, Speaker):
            if ("", key[1]) in self._shelves["nodes"].objects:
                self._ghosts[key[1]] = known.status
            self._forget(key[1])
        elif isinstance(known, Vip):
            self.memory.request(known.key, "", 0.0)
        elif kind == "nodes":
            self._ghosts.pop(key[1], None)
        return True

    def replaced(self, kind: Kind, raws: Iterable[Object], version: int, now_s: float) -> bool:
        """A complete list as of ``version``: what is not in it and is older does not exist."""
        shelf = self._shelves[kind]
        changed = not shelf.complete
        present = set()
        for raw in raws:
            present.add(_identity(raw)[0])
            changed |= self.seen(kind, raw, now_s, listed=True)
        for key in [k for k in shelf.objects if k not in present and shelf.versions[k] <= version]:
            changed |= self._drop(kind, key, version)
        shelf.complete = True
        return changed

    def _heard_from(self, speaker: Speaker, before: object, now_s: float, *, listed: bool) -> None:
        node = speaker.metadata.name
        self._ghosts.pop(node, None)
        earlier = before.status if isinstance(before, Speaker) else None
        self.memory.speaker(node, earlier, speaker.status, now_s, listed=listed)
        if not listed:
            self._alive_at[node] = now_s
        old = {r.name: r for r in before.status.routers} if isinstance(before, Speaker) else {}
        reports = {r.name: r for r in speaker.status.routers}
        for gone in old.keys() - reports.keys():
            self._taken_at.pop((gone, node), None)
        for name, report in reports.items():
            known = old.get(name)
            same = known is not None and (known.uid, known.state, known.term) == (
                report.uid,
                report.state,
                report.term,
            )
            if not same:
                self._taken_at[name, node] = now_s
        listening = any(nic.carrier and not nic.listened for nic in speaker.status.interfaces)
        if listening:
            self._began_at.setdefault(node, now_s)
        else:
            self._began_at.pop(node, None)

    def _forget(self, node: str) -> None:
        self.memory.forget_node(node)
        self._alive_at.pop(node, None)
        self._began_at.pop(node, None)
        for key in [key for key in self._taken_at if key[1] == node]:
            del self._taken_at[key]

    # --- signs of life --------------------------------------------------------------------------

    def pulses(self, leases: Iterable[Object], now_s: float) -> None:
        """The speakers' Leases, all of them: a change is a sign of life of the node in the name."""
        found = set()
        for raw in leases:
            metadata = raw["metadata"]
            node, version = metadata["name"], metadata["resourceVersion"]
            found.add(node)
            spec = msgspec.convert(raw.get("spec") or {}, type=LeaseSpec, strict=False)
            pulse = self._pulses.get(node)
            if pulse is None or pulse.version != version:
                if pulse is not None:
                    self._alive_at[node] = now_s
                duration_s = spec.lease_duration_seconds or SPEAKER_LEASE_SECONDS
                self._pulses[node] = _Pulse(version, duration_s, now_s)
        for node in self._pulses.keys() - found:
            del self._pulses[node]
        self._pulses_complete = True

    def grace(self, now_s: float) -> None:
        """We took the lead, or the API is back: nobody is silent before one more Lease duration."""
        self._judging_from_s = now_s + SPEAKER_LEASE_SECONDS

    def live(self, now_s: float) -> frozenset[str]:
        """Nodes whose speaker is not known to be silent."""
        names = {key[1] for key in self._shelves["speakers"].objects}
        if now_s < self._judging_from_s:
            return frozenset(names)
        return frozenset(name for name in names if self._lives(name, now_s))

    def _lives(self, node: str, now_s: float) -> bool:
        pulse = self._pulses.get(node)
        duration_s = pulse.duration_s if pulse is not None else SPEAKER_LEASE_SECONDS
        marks = [at for at in (pulse.at_s if pulse else None, self._alive_at.get(node)) if at is not None]
        return bool(marks) and now_s < max(marks) + duration_s

    def settling(self, now_s: float) -> frozenset[str]:
        return frozenset(node for node, at in self._began_at.items() if now_s < at + SETTLING_S)

    # --- out ------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Each kind was listed whole: no plan before that."""
        listed = all(shelf.complete for shelf in self._shelves.values())
        return listed and self._pulses_complete

    def current(self, kind: Kind, metadata: Metadata) -> bool:
        """Whether the object is still as it was when this metadata was read."""
        version = self._shelves[kind].versions.get((metadata.namespace, metadata.name))
        return version is not None and str(version) == metadata.resource_version

    def highest_epoch(self) -> int:
        routers = self._shelves["virtualrouters"].objects.values()
        return max((r.spec.planner_epoch for r in routers if isinstance(r, VirtualRouter)), default=0)

    def timely(self, now_s: float) -> Timely:
        """What is true at this time, as far as the memory knows."""
        routers = self._shelves["virtualrouters"].objects
        speakers = self._shelves["speakers"].objects
        return self.memory.timely(
            {key[1]: r for key, r in routers.items() if isinstance(r, VirtualRouter)},
            {key[1]: s.status for key, s in speakers.items()},
            now_s,
        )

    def snapshot(self, *, epoch: int, now_s: float) -> World:
        routers = self._shelves["virtualrouters"].objects
        speakers: dict[Key, Speaker] = self._shelves["speakers"].objects
        nodes: dict[Key, Node] = self._shelves["nodes"].objects
        vips: dict[Key, Vip] = self._shelves["virtualips"].objects
        return World(
            cluster_uid=self.cluster_uid,
            nodes={key[1]: nodes[key] for key in sorted(nodes)},
            speakers={key[1]: speakers[key].status for key in sorted(speakers)},
            ghosts=dict(self._ghosts),
            live=self.live(now_s),
            vips=tuple(vips[key] for key in sorted(vips)),
            routers={k[1]: r for k, r in sorted(routers.items()) if isinstance(r, VirtualRouter)},
            virtual_router_ids=self._virtual_router_ids,
            epoch=epoch,
            settling=self.settling(now_s),
            alive_at=dict(self._alive_at),
            taken_at=dict(self._taken_at),
            unreadable_routers=frozenset(
                k[1] for k, r in routers.items() if not isinstance(r, VirtualRouter)
            ),
            drain_rule=self._drain_rule,
            timely=self.timely(now_s),
        )


# --- decoding -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object that is there and can't be read."""

    metadata: Metadata
    why: str


def _identity(raw: Object) -> tuple[Key, int]:
    metadata = raw["metadata"]
    return (metadata.get("namespace", ""), metadata["name"]), int(metadata["resourceVersion"])


def decoded(kind: Kind, raw: Object) -> object:
    """The part of an object that planning asks for."""
    if kind == "nodes":
        return _node(raw)
    if kind == "virtualips":
        return _vip(raw)
    try:
        return decode_router(raw) if kind == "virtualrouters" else decode_speaker(raw)
    except DecodeError as error:
        metadata = msgspec.convert(raw["metadata"], type=Metadata)
        log.warning("%s %s can't be read, and counts for nothing: %s", kind, metadata.name, error)
        return Speaker(metadata) if kind == "speakers" else Unreadable(metadata, str(error))


def _node(raw: Object) -> Node:
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    addresses = set()
    for entry in status.get("addresses") or ():
        try:
            addresses.add(str(ip_address(entry["address"])))
        except ValueError:
            continue  # a host name
    return Node(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        addresses=frozenset(addresses),
        deleting=metadata.get("deletionTimestamp") is not None,
        taints=frozenset(taint["key"] for taint in spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        ready=all(c.get("status") == "True" for c in status.get("conditions") or () if c["type"] == "Ready"),
    )


def _vip(raw: Object) -> Vip:
    metadata = msgspec.convert(raw["metadata"], type=Metadata)
    errors: tuple[str, ...] = ()
    spec: VirtualIPSpec | None = None
    try:
        spec = decode_virtual_ip({key: value for key, value in raw.items() if key != "status"}).spec
    except DecodeError as error:
        errors = tuple(f"{each.field}: {each.message}" for each in error.errors)
    try:
        status = msgspec.convert(raw.get("status") or {}, type=VirtualIPStatus)
    except msgspec.ValidationError:
        status = VirtualIPStatus()  # somebody else's; ours is written over it
    return Vip(metadata, spec, status, errors)


def _meaning(thing: object) -> object:
    """What a plan or a status may depend on; resourceVersion and the like are left out."""
    if isinstance(thing, Vip):
        meta = thing.metadata
        return (meta.uid, meta.generation, meta.annotations, thing.status, thing.errors)
    if isinstance(thing, VirtualRouter):
        return (thing.metadata.uid, thing.metadata.generation, thing.spec)
    if isinstance(thing, Speaker):
        return (thing.metadata.uid, thing.status)
    return thing
