# SPDX-License-Identifier: Apache-2.0
"""The adverts of one virtual router: one in each family that has an address to list."""

from typing import Final

from holdfast_speaker.effects import Count, Effect, Send
from holdfast_speaker.node.address import Holding, Phase
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.vrrp.advert import Advert, Family, build, listing

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)


def listed(holdings: Holdings) -> list[Holding]:
    """What is bound or being bound. With neither (a last advert, priority 0) any: it must list one."""
    return holdings.in_phase(Phase.BINDING, Phase.BOUND) or list(holdings.by_address.values())[:1]


def sends(
    nic: Nic,
    holdings: Holdings,
    *,
    virtual_router_id: int,
    priority: int,
    interval_us: int,
    rfc_checksum: bool,
) -> tuple[Effect, ...]:
    """The effects of advertising once."""
    effects: list[Effect] = []
    ours = listed(holdings)
    for family in _FAMILIES:
        source = nic.source(family)
        packed = [holding.packed for holding in ours if holding.family == family]
        if source is None or not packed:
            continue
        text = listing(family, virtual_router_id, packed, nic.link.mtu)
        advert = Advert(family, source, virtual_router_id, priority, interval_us, text, rfc_checksum)
        effects.append(Send(nic.link.index, build(advert, nic.mac)))
    if effects:
        effects.append(Count("adverts_sent", amount=len(effects)))
    return tuple(effects)
