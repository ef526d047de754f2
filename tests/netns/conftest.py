# SPDX-License-Identifier: Apache-2.0
"""Networks for the tests of the doors."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from holdfast_speaker.addresses.kernel import KernelAddresses
from holdfast_speaker.fence.kernel import KernelFence
from tests.netns.address_door import On
from tests.netns.fence_field import Field, field_of
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


@pytest.fixture
def on_a(pair: Net) -> Iterator[On]:
    """The door of host a, and the index of its NIC."""
    with pair.inside("a"), closing(KernelAddresses()) as door:
        yield pair, door, socket.if_nametoindex("eth0")


@pytest.fixture
def field(net: Net) -> Iterator[Field]:
    """Where the fence is tried, from inside of its host a."""
    with field_of(net) as made:
        yield made


@pytest.fixture
def fence(field: Field) -> Iterator[KernelFence]:
    """Its fence, with a short lease and no virtual MACs."""
    with closing(field.fence()) as made:
        yield made
