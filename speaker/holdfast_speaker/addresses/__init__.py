# SPDX-License-Identifier: Apache-2.0
"""Addresses and their macvlans on NICs, by rtnetlink. ``kernel`` is the door."""
