# SPDX-License-Identifier: Apache-2.0
"""The speaker: runs the elections on the segment, holds the addresses of those it wins.

Pure rooms (no clock, no I/O, no await; time is an argument in microseconds):

- ``vrrp``    RFC 9568: adverts to and from bytes, the router's states and timers
- ``arp``     what is announced when, and the probe before a first claim
- ``node``    the brain: plan + packets + kernel -> effects; the thing that is simulated
- ``events``, ``effects``   what goes in and what comes out, as data

Doors (few, small): ``link`` packet sockets, ``frames`` ARP and ND frames (scapy), ``addresses``
rtnetlink (pyroute2), ``cluster`` the API, ``loop`` feeds, runs effects and arms one timer, ``main`` wires.
``ports`` says what the loop asks of a door.
"""
