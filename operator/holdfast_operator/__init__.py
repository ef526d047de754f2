# SPDX-License-Identifier: Apache-2.0
"""The operator: decides in silence, acts at the door.

    objects ─ cache ─► World ─ plan ─► Plan ─ changes, status ─► writes ─ cluster ─► API

Pure, no clock, no I/O: ``world`` (the planner's whole input), ``eligibility`` (may this node carry it),
``claims`` (who may have which address), ``candidates`` (order and priorities), ``drafts`` and ``placing``
(routers, VRIDs, spread), ``exits`` (released before bound again), ``plan`` (all of it), ``changes`` (what
is to be written), ``status`` (what is told), ``notices`` (what is news), ``lease`` (who leads).

With a clock or a socket: ``cache`` (what the API said last), ``election`` (our Lease), ``cluster`` (the only
writer), ``planner`` (debounce and the loop), ``handlers`` (the only importer of kopf: it delivers events,
and they mean "look again"), ``metrics``, ``main``.

Bounds: 16 writes at once, 343 addresses a router, 255 routers; without anything to do it writes nothing
but its own Lease.
"""
