# SPDX-License-Identifier: Apache-2.0
"""Where the fence stands: on NICs that are covered, and on the macvlan of each virtual MAC."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterable
from typing import Final

from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.fence import rules
from holdfast_speaker.fence.nftables_socket import Nftables
from holdfast_speaker.fence.words import TABLE
from holdfast_speaker.virtual_mac import PREFIX

log = logging.getLogger(__name__)

_LOOPBACK: Final = 1

Posts = dict[tuple[str, ...], str]  # chains, and the NIC that they stand on together


def all_indexes() -> frozenset[int]:
    """Every NIC but virtual MACs' macvlans, and the loopback."""
    nics = socket.if_nameindex()
    return frozenset(index for index, name in nics if index != _LOOPBACK and not name.startswith(PREFIX))


def name_of(code: int) -> str:
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


class Nics:
    """What stands there. ``wanted``: indexes of NICs that are to be covered."""

    def __init__(self) -> None:
        self.wanted: frozenset[int] = frozenset()
        self.posts: Posts = {}

    def covered(self, index: int) -> str | None:
        """The name of that NIC, if the fence stands on it."""
        return self.posts.get(rules.bases(index))

    def due(self) -> Posts:
        """Under their present names: a rename takes the hook away (Linux 6.16)."""
        posts: Posts = {}
        for index in sorted(self.wanted):
            with contextlib.suppress(OSError):
                posts[rules.bases(index)] = socket.if_indextoname(index)
        for index, name in socket.if_nameindex():
            if name.startswith(PREFIX):
                posts[rules.shelter(index)] = name
        return posts

    def count(self, chains: Iterable[str]) -> int:
        """How many of these chains are its own."""
        return sum(chain in chains for post in self.posts for chain in post)

    def mend(self, kernel: Nftables, chains: frozenset[str]) -> None:
        """Each as it is due, and no other. ``chains``: what there is; of a NIC that went away older kernels
        drop them, newer ones (Linux 6.16) keep them."""
        due = self.due()
        for post in sorted(self.posts.keys() | due.keys()):
            device = due.get(post)
            there = [chain for chain in post if chain in chains]
            if device is not None and self.posts.get(post) == device and len(there) == len(post):
                continue
            messages = [nft.delete_chain(TABLE, chain) for chain in there]
            if device is not None:
                messages += rules.hook(post, device)
            code = kernel.commit(messages) if messages else 0
            if code:
                log.warning("fence: NIC %s (%s): %s", device or "gone", ", ".join(post), name_of(code))
            elif device is None:
                self.posts.pop(post, None)
            else:
                self.posts[post] = device


def covers(posts: Posts) -> list[str]:
    """The NICs among them, without the macvlans."""
    return [device for device in posts.values() if not device.startswith(PREFIX)]


def hooks(posts: Posts) -> nft.Messages:
    return [message for chains, device in posts.items() for message in rules.hook(chains, device)]
