# SPDX-License-Identifier: Apache-2.0
"""ARP and neighbour discovery, sans-I/O: who claims an address, may we have it, and telling everybody.

- ``claim``     frames to "this MAC says it has this address" (bounded work, never raises)
- ``acd``       the probe before a first claim (RFC 5227 style, RFC 4862 for IPv6)
- ``greeting``  an ordinary question to a neighbour: is anybody there?
- ``announce``  the schedule of announcements of one NIC (semantics R1.1 to R1.4)

Bytes of outgoing ARP and ND frames are built elsewhere (``frames``): here are only forms and addresses.
"""
