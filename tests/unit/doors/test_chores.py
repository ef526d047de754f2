# SPDX-License-Identifier: Apache-2.0
"""Long work in slices."""

import asyncio

from holdfast_speaker.chores import Chores
from holdfast_speaker.ports import Neighbour, Surroundings
from tests.unit.doors.fake_doors import FakeAddresses, FakeFrames, FakeWire


def test_each_slice_is_small_and_all_is_done_in_the_end() -> None:
    async def story() -> None:
        addresses, wire = FakeAddresses(), FakeWire()
        addresses.around = Surroundings(neighbours=(Neighbour("192.0.2.9", None),) * 64)
        chores = Chores(addresses, FakeFrames(), wire)
        many = [f"10.0.{i // 250}.{i % 250}" for i in range(100)]
        chores.refresh(2, many)
        chores.refresh(3, many[:5])
        chores.refresh(2, many)  # again, before the first was done: once is enough
        chores.ask(2, many)
        largest = steps = 0
        while chores.waiting:
            before = len(wire.sent)
            assert chores.step() == 0
            largest = max(largest, len(wire.sent) - before)
            steps += 1
        assert largest <= 256 + 64
        assert len(wire.sent) == 100 * 64
        refreshed = [call for call in addresses.calls if call[0] == "refresh"]
        assert max(len(names) for _, _, names in refreshed) == 16
        assert [a for _, index, names in refreshed if index == 2 for a in names] == many
        assert [a for _, index, names in refreshed if index == 3 for a in names] == many[:5]
        assert steps == 25
        wire.close()

    asyncio.run(story())


def test_addresses_with_nobody_to_ask_do_not_make_an_endless_slice() -> None:
    async def story() -> None:
        wire = FakeWire()
        chores = Chores(FakeAddresses(), FakeFrames(), wire)
        chores.ask(2, [f"10.0.{i // 250}.{i % 250}" for i in range(1000)])
        chores.step()
        assert chores.waiting  # 256 were looked at, the rest waits
        wire.close()

    asyncio.run(story())


def test_frames_that_did_not_leave_are_counted() -> None:
    async def story() -> None:
        addresses, wire = FakeAddresses(), FakeWire()
        addresses.around = Surroundings(neighbours=(Neighbour("192.0.2.9", None),) * 3)
        wire.takes = False
        chores = Chores(addresses, FakeFrames(), wire)
        chores.ask(2, ["10.0.0.1", "10.0.0.2"])
        assert chores.step() == 6
        wire.close()

    asyncio.run(story())
