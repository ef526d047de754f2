# SPDX-License-Identifier: Apache-2.0
"""The plan as this node has it: the last good version of each VirtualRouter, and what could not be read."""

from collections.abc import Iterable
from ipaddress import ip_address

from holdfast_api.types import VirtualRouter
from holdfast_speaker.node import plan


class Book:
    """``routers`` and ``rejected`` are by name."""

    __slots__ = ("_packed", "rejected", "routers", "terms")

    def __init__(self) -> None:
        self.routers: dict[str, VirtualRouter] = {}
        self.rejected: dict[str, str] = {}
        self._packed: dict[str, tuple[frozenset[bytes], frozenset[bytes]]] = {}
        self.terms: dict[str, int] = {}  # the highest seen, also of an earlier life of this speaker

    def accept(self, router: VirtualRouter) -> bool:
        """Whether this is news: not an old version, and not one that can't be run (that is noted)."""
        name = router.metadata.name
        known = self.routers.get(name)
        if known is not None and known.metadata.uid == router.metadata.uid:
            if router.metadata.generation < known.metadata.generation:
                return False
            if router.spec == known.spec and name not in self.rejected:
                self.routers[name] = router
                return router.metadata.generation != known.metadata.generation
        why = plan.fault(router)
        if (
            why is None
            and known is not None
            and known.spec.virtual_router_id != router.spec.virtual_router_id
        ):
            why = f"spec.virtualRouterID was {known.spec.virtual_router_id}: it is immutable"
        if why is None and known is None and len(self.routers) >= plan.MAX_ROUTERS:
            why = f"more than {plan.MAX_ROUTERS} VirtualRouters"
        if why is not None:
            self.reject(name, why)
            return False
        self.rejected.pop(name, None)
        self.routers[name] = router
        self._packed[name] = _pack(router)
        return True

    def reject(self, name: str, why: str) -> None:
        if len(self.rejected) < plan.MAX_ROUTERS:
            self.rejected[name] = why

    def delete(self, name: str) -> None:
        self.routers.pop(name, None)
        self._packed.pop(name, None)
        self.rejected.pop(name, None)
        self.terms.pop(name, None)

    def missing(self, listed: Iterable[str]) -> tuple[str, ...]:
        """Names we know that a complete list has not."""
        present = set(listed)
        return tuple(name for name in sorted({*self.routers, *self.rejected}) if name not in present)

    def addresses(self) -> frozenset[bytes]:
        """All addresses of the plan, packed."""
        return frozenset().union(*(addresses for addresses, _ in self._packed.values()))

    def sources(self) -> dict[int, frozenset[bytes]]:
        """For each VRID of the plan, the addresses its candidates' adverts come from."""
        sources: dict[int, frozenset[bytes]] = {}
        for name, router in self.routers.items():
            virtual_router_id = router.spec.virtual_router_id
            known = sources.get(virtual_router_id)
            own = self._packed[name][1]
            sources[virtual_router_id] = own if known is None else known | own
        return sources


def _pack(router: VirtualRouter) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Its addresses, and its candidates' sources."""
    sources = (source for candidate in router.spec.candidates for source in candidate.sources)
    return (
        frozenset(ip_address(planned.address).packed for planned in router.spec.addresses),
        frozenset(ip_address(source).packed for source in sources if _is_address(source)),
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
