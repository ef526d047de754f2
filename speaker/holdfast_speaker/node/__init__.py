# SPDX-License-Identifier: Apache-2.0
"""The speaker's brain, pure: plan, packets, kernel news and time in; effects out.

- ``brain``     ``Node``: hands events to those they concern, merges deadlines, reports
- ``routers``   the plan, and on which NIC each virtual router runs; ``book`` the last good versions
- ``instance``  one virtual router: plan and election; ``settle`` does the next step
- ``tenure``    what its Active does, and to stop being it; ``gate`` its part of the kernel's fence;
  ``departure`` going without a gap; ``takeover`` the story of one
- ``suspicion`` before a takeover: does anybody hear the Active, or us? ``doubt`` has the rules
- ``following`` the Active that a Backup obeys; ``conflict`` who else claims what is held here
- ``holding``   its addresses: probe, bind, refresh, release; ``adverts`` lists them
- ``nic``, ``heard``   the segment: whom to believe, who is Active on which VRID, strangers
- ``host``      what they share; ``agenda`` one deadline of many; ``report`` the Speaker's status
"""

from holdfast_speaker.node.brain import Node

__all__ = ["Node"]
