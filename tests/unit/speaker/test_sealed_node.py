# SPDX-License-Identifier: Apache-2.0
"""A brain with keys: it signs each advert anew, and only those who have a key move it."""

import pytest

from holdfast_speaker import effects as do
from holdfast_speaker import events as on
from holdfast_speaker.node import Node
from holdfast_speaker.vrrp.advert import Advert, build, parse
from holdfast_speaker.vrrp.seal import Mode, Seal
from tests.scripts.stage import INDEX, WALL_OFFSET_US, Stage

KEYS = {1: b"k" * 32}
PEER_MAC = bytes.fromhex("020000000002")
BETTER = Advert(4, bytes((10, 0, 0, 2)), 51, 254, 100_000, bytes((10, 0, 0, 100)))


def seal(mode: Mode = "enforce", secrets: dict[int, bytes] = KEYS) -> Seal:
    made = Seal(mode, wall_offset_us=WALL_OFFSET_US)
    made.keyring.renew(secrets, -(10**12))
    return made


def active(sealed: Seal) -> Stage:
    """Node a, Active for vr-51, with failback Never for all."""
    stage = Stage()
    stage.node = Node("a", "test", wall_offset_us=WALL_OFFSET_US, seal=sealed)
    for command in (
        "link eth0 10.0.0.1/24 fe80::1/64",
        "plan vr-51 10.0.0.100 claimed 2001:db8::100 claimed candidates=a:250,b:248",
        "list",
        "run 5s",
    ):
        stage.perform(command)
    stage.effects.clear()
    return stage


def holds(stage: Stage) -> bool:
    """Whether it goes on advertising; what it says while it steps down does not count."""
    stage.perform("run 20ms")
    stage.effects.clear()
    stage.perform("run 130ms")
    sent = [effect.frame for effect in stage.effects if isinstance(effect, do.Send)]
    return any(isinstance(parse(frame), Advert) for frame in sent)


def hear(stage: Stage, frame: bytes) -> list[str]:
    """What is counted for it."""
    stage.effects.clear()
    stage.handle(on.FrameReceived(INDEX, frame))
    return [f"{e.metric} {e.label}".strip() for e in stage.effects if isinstance(e, do.Count)]


def test_every_advert_is_signed_anew_in_both_families_and_the_last_one_too() -> None:
    stage, receiver = active(seal()), seal()
    stage.perform("run 1s")
    stage.perform("delete vr-51")
    frames = [effect.frame for effect in stage.effects if isinstance(effect, do.Send)]
    adverts = [advert for advert in map(parse, frames) if isinstance(advert, Advert)]

    assert len(adverts) >= 20
    assert {advert.family for advert in adverts} == {4, 6}
    assert adverts[-1].priority == 0
    assert len({advert.trailer for advert in adverts}) == len(adverts)
    assert [receiver.check(advert, stage.now_us) for advert in adverts] == [None] * len(adverts)


def test_only_a_key_moves_an_active() -> None:
    stage, peer = active(seal()), seal()
    forged = seal(secrets={1: b"x" * 32}).sign(BETTER, PEER_MAC, stage.now_us)

    assert "discards unsigned" in hear(stage, build(BETTER, PEER_MAC))
    assert "discards bad_mac" in hear(stage, forged)
    assert holds(stage)
    captured = peer.sign(BETTER, PEER_MAC, stage.now_us)
    assert "adverts_received" in hear(stage, captured)
    assert not holds(stage)
    assert "discards replayed" in hear(stage, captured)
    stage.perform("run 20s")
    assert "discards stale" in hear(stage, captured)


def test_a_backup_is_not_kept_waiting_by_what_was_captured() -> None:
    """The Active died; its old adverts come again and again."""
    stage, peer = active(seal()), seal()
    captured = [peer.sign(BETTER, PEER_MAC, stage.now_us + step) for step in range(3)]
    for frame in captured:
        hear(stage, frame)
    assert not holds(stage)
    for _ in range(10):
        for frame in captured:
            hear(stage, frame)
        stage.perform("run 100ms")

    assert holds(stage)


@pytest.mark.parametrize("frame", ["unsigned", "another key"])
def test_permissive_obeys_those_who_have_no_key_yet_and_counts_them(frame: str) -> None:
    stage = active(seal("permissive"))
    other = seal(secrets={} if frame == "unsigned" else {2: b"n" * 32})
    counted = hear(stage, other.sign(BETTER, PEER_MAC, stage.now_us))

    assert counted[0] == ("discards unsigned" if frame == "unsigned" else "discards unknown_key")
    assert "adverts_received" in counted
    assert not holds(stage)


def test_a_speaker_without_keys_obeys_signed_adverts() -> None:
    bare = Stage()
    bare.node = Node("a", "test", wall_offset_us=WALL_OFFSET_US)
    for command in (
        "link eth0 10.0.0.1/24",
        "plan vr-51 10.0.0.100 claimed candidates=a:250,b:248",
        "list",
        "run 5s",
    ):
        bare.perform(command)

    assert "adverts_received" in hear(bare, seal().sign(BETTER, PEER_MAC, bare.now_us))
    assert not holds(bare)
