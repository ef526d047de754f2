# SPDX-License-Identifier: Apache-2.0
"""A whole cluster life from one seed: real brains, a simulated segment, kernel and API.

- ``world``     hosts, segment, API; one queue of events, one clock
- ``host``      a host: the real ``Node``, its loop
- ``kernel``    a host's kernel: the fence by address and by MAC, what is bound
- ``switch``    on whose port each virtual MAC is, and traffic that goes there
- ``life``      what a seed means: the cluster, its faults, its changes of plan
- ``checkers``  what must never be, and what must be again after the last fault
- ``mutations`` bugs planted on purpose: each must be caught
- ``text``      effects as lines; ``wire`` ARP and ND frames

``python -m tests.sim --seed N --seconds S`` replays one; ``--soak S`` walks over seeds for S seconds.
"""
