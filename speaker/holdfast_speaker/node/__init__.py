# SPDX-License-Identifier: Apache-2.0
"""The speaker's brain, pure: plan, packets, kernel news and time in; effects out.

- ``brain``     ``Node``: hands events to those they concern, merges deadlines, reports
- ``routers``   the plan, and on which NIC each virtual router runs; ``book`` the last good versions
- ``instance``  one virtual router: election, adverts, takeover; ``settle`` does the next step
- ``holding``   its addresses: probe, bind, refresh, release; ``adverts`` lists them
- ``nic``, ``heard``   the segment: whom to believe, who is Active on which VRID, strangers
- ``host``      what they share; ``agenda`` one deadline of many; ``report`` the Speaker's status
"""

from holdfast_speaker.node.brain import Node

__all__ = ["Node"]
