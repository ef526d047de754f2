# SPDX-License-Identifier: Apache-2.0
"""The adverts of one virtual router: one in each family that has an address.

They list what is bound and announced, and nothing else: whoever hands over lets go of what he sees listed.
With nothing bound yet an IPv4 advert lists the NIC's own address, since RFC 9568 has no empty one; an IPv6
advert begins with a link-local address anyway.
"""

from typing import Final

from holdfast_speaker.effects import Count, Effect, Send
from holdfast_speaker.node.address import Phase
from holdfast_speaker.node.holding import Holdings
from holdfast_speaker.node.nic import Nic
from holdfast_speaker.vrrp.advert import Advert, Family, build, listing
from holdfast_speaker.vrrp.seal import Seal

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)


def sends(
    nic: Nic,
    holdings: Holdings,
    *,
    virtual_router_id: int,
    priority: int,
    interval_us: int,
    rfc_checksum: bool,
    seal: Seal | None,
    now_us: int,
) -> tuple[Effect, ...]:
    """The effects of advertising once. Signed ones are good for one time."""
    effects: list[Effect] = []
    families = {holding.family for holding in holdings.by_address.values()}
    signed = seal is not None and seal.signs
    for family in _FAMILIES:
        source = nic.source(family) if priority else nic.last_source(family)
        if source is None or family not in families:
            continue
        bound = holdings.in_phase(Phase.BOUND) if nic.is_settled(now_us) else []
        packed = [holding.packed for holding in bound if holding.family == family]
        if not packed and family == 4:
            packed = [source]
        text = listing(family, virtual_router_id, packed, nic.link.mtu, signed=signed)
        advert = Advert(family, source, virtual_router_id, priority, interval_us, text, rfc_checksum)
        frame = seal.sign(advert, nic.mac, now_us) if seal is not None else build(advert, nic.mac)
        effects.append(Send(nic.link.index, frame, virtual_router_id))
    if effects:
        effects.append(Count("adverts_sent", amount=len(effects)))
    return tuple(effects)
