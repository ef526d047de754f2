# SPDX-License-Identifier: Apache-2.0
"""One router's part of the kernel's fence: said once, asked one at a time, answers that are too old."""

from holdfast_speaker import effects as do
from holdfast_speaker.node.gate import RETRY_US, Gate
from holdfast_speaker.node.host import Host

LEASE = 280_000


def gate() -> tuple[Gate, Host]:
    host = Host("a", 0)
    return Gate(host, "vr-51", 51), host


def said(host: Host) -> list[do.Effect]:
    out = list(host.out)
    host.out.clear()
    return out


def test_what_is_guarded_is_said_once_and_again_when_it_is_other() -> None:
    fence, host = gate()
    fence.guard(2, LEASE, ("10.0.0.100",))
    fence.guard(2, LEASE, ("10.0.0.100",))
    assert said(host) == [do.Guard(51, 2, LEASE, ("10.0.0.100",))]

    for wanted in [
        (2, 2 * LEASE, ("10.0.0.100",)),
        (3, 2 * LEASE, ("10.0.0.100",)),
        (3, 2 * LEASE, ()),
    ]:
        fence.guard(*wanted)
        assert said(host) == [do.Guard(51, *wanted)]


def test_virtual_macs_are_part_of_it_and_the_hosts_own_address_only_with_them() -> None:
    fence, host = gate()
    macs = (("10.0.0.100", "02:aa:00:00:00:64"),)
    fence.guard(2, LEASE, ("10.0.0.100",), (), "10.0.0.1")
    fence.guard(2, LEASE, ("10.0.0.100",), (), "10.0.0.2")
    assert said(host) == [do.Guard(51, 2, LEASE, ("10.0.0.100",))]
    assert fence.macs == []

    fence.guard(2, LEASE, ("10.0.0.100",), macs, "10.0.0.1")
    fence.guard(2, LEASE, ("10.0.0.100",), macs, "10.0.0.2")
    assert said(host) == [
        do.Guard(51, 2, LEASE, ("10.0.0.100",), macs, own) for own in ("10.0.0.1", "10.0.0.2")
    ]
    assert fence.macs == [(2, "10.0.0.100", "02:aa:00:00:00:64")]

    fence.unguard()
    assert fence.macs == []


def test_only_what_is_guarded_is_given_up_and_can_be_guarded_anew() -> None:
    fence, host = gate()
    fence.unguard()
    assert said(host) == []

    fence.guard(2, LEASE, ("10.0.0.100",))
    fence.unguard()
    fence.unguard()
    fence.guard(2, LEASE, ("10.0.0.100",))
    assert [type(each) for each in said(host)] == [do.Guard, do.Unguard, do.Guard]


def test_one_question_at_a_time() -> None:
    fence, host = gate()
    fence.ask(7)
    fence.ask(8)
    (take,) = said(host)

    assert isinstance(take, do.Take)
    assert (take.virtual_router_id, take.until_us) == (51, 7)
    assert host.owners == {take.id: "vr-51"}
    assert fence.answered(take.id, is_open=True, now_us=5)
    assert (fence.asked, fence.again_us) == (None, 0)


def test_a_refused_lease_waits_a_tenth_of_a_second() -> None:
    fence, host = gate()
    fence.ask(7)
    (take,) = said(host)
    assert isinstance(take, do.Take)

    assert not fence.answered(take.id, is_open=False, now_us=5)
    assert fence.again_us == 5 + RETRY_US
    fence.ask(9)
    (again,) = said(host)
    assert isinstance(again, do.Take)
    assert fence.answered(again.id, is_open=True, now_us=6)
    assert fence.again_us == 0


def test_an_answer_nobody_waits_for_opens_nothing() -> None:
    fence, host = gate()
    fence.ask(7)
    (take,) = said(host)
    assert isinstance(take, do.Take)
    fence.forget()
    assert not fence.answered(take.id, is_open=True, now_us=5)

    fence.ask(8)
    assert not fence.answered(take.id, is_open=True, now_us=5)
    assert fence.asked is not None


def test_a_lease_that_ran_out_while_nobody_was_there_is_taken_again_without_asking() -> None:
    fence, host = gate()
    fence.retake(1000, LEASE)
    (take,) = said(host)

    assert isinstance(take, do.Take)
    assert take.until_us == 1000 + LEASE
    assert fence.asked is None
    assert not fence.answered(take.id, is_open=True, now_us=1001)


def test_only_the_last_retake_can_be_refused() -> None:
    fence, host = gate()
    fence.retake(1000, LEASE)
    fence.retake(2000, LEASE)
    fence.ask(3000)
    first, last, asked = (effect.id for effect in said(host) if isinstance(effect, do.Take))

    assert fence.refused(last, is_open=False)
    assert not fence.refused(last, is_open=True)
    assert not fence.refused(first, is_open=False)
    assert not fence.refused(asked, is_open=False)


def test_each_verb_is_about_this_router() -> None:
    fence, host = gate()
    fence.extend()
    fence.quiet()
    fence.silence()
    fence.release()

    verbs = ("extend", "quiet", "silence", "release")
    assert said(host) == [do.Fence(51, verb) for verb in verbs]  # type: ignore[arg-type]
