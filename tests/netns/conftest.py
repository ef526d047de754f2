# SPDX-License-Identifier: Apache-2.0
"""Networks for the tests of the doors."""

from collections.abc import Iterator

import pytest

from tests.netns.small_net import Net


@pytest.fixture
def net(rig_ready: None) -> Iterator[Net]:  # noqa: ARG001  root and tools, or a failure that says so
    """An empty network."""
    network = Net()
    try:
        yield network
    finally:
        network.close()


@pytest.fixture
def pair(net: Net) -> Net:
    """Two hosts on one cable: ``a`` with 192.0.2.1 and 2001:db8::1, ``b`` with .2 and ::2, NIC eth0."""
    for name in ("a", "b"):
        net.add(name)
    net.cable("a", "eth0", "b", "eth0")
    for number, name in enumerate(("a", "b"), 1):
        net.ip(
            name,
            f"addr add 192.0.2.{number}/24 dev eth0",
            f"addr add 2001:db8::{number}/64 dev eth0 nodad",
        )
    return net
