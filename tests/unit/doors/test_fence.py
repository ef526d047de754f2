# SPDX-License-Identifier: Apache-2.0
"""The fence without a kernel: what it does when it is refused, and when there is none."""

import errno
import struct
from collections.abc import Iterator, Sequence

import pytest

from holdfast_speaker.fence import kernel as door
from holdfast_speaker.fence import nftables as nft
from holdfast_speaker.fence import rules
from holdfast_speaker.fence.kernel import KernelFence, jiffy_us
from holdfast_speaker.fence.nftables_socket import Nftables
from holdfast_speaker.fence.orders import new_mark


class Kernel:
    """Says yes, unless told otherwise; a table that was made has what it should have."""

    refusals: list[int]
    commits: list[Sequence[bytes]]
    made: KernelFence
    flushed = False
    unknown = False
    changes = 0

    def __init__(self) -> None:
        self.refusals, self.commits = [], []

    def commit(self, messages: Sequence[bytes]) -> int:
        self.commits.append(messages)
        self.changes += 1
        if messages[:2] == rules.table(0, 0)[:2]:
            self.flushed = False
        elif self.flushed:
            return errno.ENOENT
        return self.refusals.pop(0) if self.refusals else 0

    def chains(self, _: str) -> frozenset[str] | None:
        if self.unknown:
            return None
        return frozenset() if self.flushed else self.made._standing.chains

    def rules(self, _: str) -> int | None:
        return None if self.unknown else self.made._standing.rules

    def generation(self) -> int:
        return self.changes

    def contains(self, _table: str, _name: str, _key: bytes) -> bool:
        return not self.flushed

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(door, "Nftables", lambda: made)
    return made


@pytest.fixture
def fence(kernel: Kernel) -> Iterator[KernelFence]:
    made = kernel.made = KernelFence()
    made.open(())
    made.guard(7, 2, 280_000, ("192.0.2.10",))
    made.guard(8, 2, 280_000, ("192.0.2.11",))
    assert made.take(7)
    assert made.take(8)
    kernel.commits.clear()
    yield made
    made.close()


def test_what_is_known_already_costs_nothing(kernel: Kernel, fence: KernelFence) -> None:
    fence.guard(7, 2, 280_999, ["192.0.2.10"])  # the same in whole milliseconds
    fence.unguard(9)
    fence.adopt("192.0.2.99")
    fence.quiet(9)
    assert kernel.commits == []


def test_a_refusal_by_a_whole_table_is_tried_again_and_no_lease_is_lost(
    kernel: Kernel, fence: KernelFence
) -> None:
    kernel.refusals = [errno.ENOMEM]
    assert fence.take(7)
    assert len(kernel.commits) == 2
    kernel.refusals = [errno.ENOMEM, errno.ENOMEM]
    assert not fence.take(7)
    assert fence.mend() == frozenset()


def test_a_refusal_by_a_flushed_host_makes_the_table_anew_once(kernel: Kernel, fence: KernelFence) -> None:
    kernel.flushed = True
    assert fence.take(7)
    assert len(kernel.commits) == 3  # refused, the table, and again
    assert fence.mend() == {8}
    assert fence.mend() == frozenset()


def test_a_table_that_cannot_be_made_is_tried_again_at_each_mend(kernel: Kernel, fence: KernelFence) -> None:
    kernel.flushed = True
    kernel.refusals = [errno.ENOMEM]
    assert fence.mend() == frozenset()
    kernel.flushed = True
    assert fence.mend() == {7, 8}


def test_a_change_that_is_refused_for_good_is_made_by_the_next_mend(
    kernel: Kernel, fence: KernelFence
) -> None:
    kernel.refusals = [errno.ENFILE, errno.ENFILE]
    fence.guard(7, 2, 280_000, ("192.0.2.10", "192.0.2.12"))
    kernel.commits.clear()
    assert fence.mend() == {7, 8}
    (table,) = kernel.commits
    assert any(bytes((192, 0, 2, 12)) in message for message in table)


def test_what_cannot_be_seen_now_is_taken_for_whole(kernel: Kernel, fence: KernelFence) -> None:
    """A dump is interrupted as long as somebody else changes rules: no reason to let a lease go."""
    kernel.unknown = True
    assert fence.mend() == frozenset()
    kernel.refusals = [errno.ENOENT]
    assert fence.take(7)
    assert len(kernel.commits) == 2


def test_a_dead_lease_is_not_extended_and_nothing_is_made_anew_for_it(
    kernel: Kernel, fence: KernelFence
) -> None:
    kernel.refusals = [errno.ENOENT]
    assert not fence.extend(7)
    assert len(kernel.commits) == 1
    assert not fence.extend(9)
    assert not fence.take(9)


def test_a_lease_that_was_given_up_is_not_missed(kernel: Kernel, fence: KernelFence) -> None:
    fence.release(7)
    fence.unguard(8)
    kernel.flushed = True
    assert fence.mend() == frozenset()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT, errno.EIO])
def test_without_a_kernel_that_can_all_verbs_do_nothing(kernel: Kernel, code: int) -> None:
    kernel.refusals = [code]
    fence = KernelFence()
    assert fence.fault
    kernel.commits.clear()
    all_verbs_do_nothing(fence)
    assert kernel.commits == []


def test_without_nf_tables_all_verbs_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_socket() -> Nftables:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(door, "Nftables", no_such_socket)
    fence = KernelFence()
    assert fence.fault == "the kernel has no nf_tables"
    all_verbs_do_nothing(fence)


def all_verbs_do_nothing(fence: KernelFence) -> None:
    fence.open(["192.0.2.9"])
    fence.cover(frozenset({2}))
    fence.guard(7, 2, 280_000, ("192.0.2.10",))
    assert fence.take(7)
    assert fence.extend(7)
    assert fence.alive(7)
    fence.quiet(7)
    fence.silent(7)
    fence.release(7)
    fence.adopt("192.0.2.9")
    fence.refresh()
    fence.unguard(7)
    assert fence.mend() == frozenset()
    fence.close()


def test_the_mark_is_another_one_each_time_and_leaves_other_programs_bits_alone() -> None:
    marks = {new_mark() for _ in range(200)}
    assert len(marks) == 200
    assert all(0 < mark < 1 << 31 and not mark & 0xFF00 for mark in marks)


def test_the_kernels_tick_is_one_that_kernels_have() -> None:
    assert jiffy_us() in (1_000, 3_333, 4_000, 10_000)


def test_a_great_many_elements_fit_into_messages() -> None:
    """An attribute's length has 16 bits."""
    keys = [struct.pack("!IIII", n, 0, 0, n) for n in range(8_192)]
    elements = nft.elements(keys, goto="q255")
    assert elements == [nft.element(key, goto="q255") for key in keys]
    messages = nft.add_elements("holdfast", "asked6", elements)
    assert all(len(message) < 1 << 16 for message in messages)
    assert b"".join(messages).count(b"q255\0") == 8_192
    assert nft.elements([]) == []
    assert nft.add_elements("holdfast", "asked6", []) == []
