# SPDX-License-Identifier: Apache-2.0
"""RFC 9568 (VRRPv3), sans-I/O.

- ``advert``   whole Ethernet frames to values and back; every refusal has a name (``Discard``)
- ``timing``   Skew_Time and Active_Down_Interval, integers in microseconds
- ``router``   the states Initialize, Backup, Active; it answers with acts and carries none of them out

``router`` knows neither addresses nor NICs: what is bound and announced is the business of ``node``.
Deviations from the RFC, and why: an IPv6 advert whose first address is not link-local is obeyed all the
same (the list never gates obedience: ignoring a peer costs two holders); a priority of 0 counts only from
the Active that is obeyed (anybody else's resignation says nothing about the one that lives).
"""
