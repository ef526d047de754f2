# SPDX-License-Identifier: Apache-2.0
"""What failed once goes well now; ten seconds of damage to everything; and the campaign can fail.

``make fuzz`` goes on for ten minutes.
"""

import os
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import pytest

from holdfast_speaker.arp import claim
from holdfast_speaker.node.heard import Hearing
from holdfast_speaker.vrrp import trailer
from tests.fuzz import campaign
from tests.fuzz.brain import Brain
from tests.fuzz.campaign import CORPUS, KEPT_BYTES, PEAK_BYTES, Campaign, fails, growth, known, saved, targets
from tests.fuzz.targets import Adverts, Claims, Target

SECONDS = 10.0  # together
NAMES = [target.name for target in targets(Path())]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are made smaller by ``python -m tests.fuzz``, which has the time."""
    monkeypatch.setattr(campaign, "_SHRINK_S", 0.5)


def made(folder: Path, name: str) -> Target:
    return next(target for target in targets(folder) if target.name == name)


def fed(target: Target, *, inputs: int, seed: int = 1) -> Campaign:
    run = Campaign([target], seed)
    run.run(until=lambda: run.inputs + run.repeated + run.waiting >= inputs)
    return run


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.hex")), ids=lambda path: path.stem)
def test_what_failed_once_goes_well_or_is_known_to_fail(tmp_path: Path, path: Path) -> None:
    """A known failure that goes well by now leaves known.txt."""
    name, inputs = saved(path)
    where = fails(made(tmp_path, name), inputs)
    waits = [place for place in known(name) if place in path.read_text()]

    assert where is None or where.startswith(known(name))
    assert where is not None or not waits, f"take out of known.txt: {waits}"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_comes_in_from_outside_breaks_a_reader(tmp_path: Path, name: str) -> None:
    until = time.monotonic() + SECONDS / len(NAMES)
    run = Campaign([made(tmp_path, name)], seed=int(os.environ.get("FUZZ_SEED", "1")))
    run.run(until=lambda: time.monotonic() >= until and run.inputs > 0)

    kept = [f"{failure.why}\n{failure.where}\n{failure.save(tmp_path)}" for failure in run.failures.values()]
    assert not kept, "\n".join(kept)
    assert run.inputs > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_of_what_was_read(tmp_path: Path, name: str) -> None:
    target = made(tmp_path, name)
    kept, peak = growth(target, 1, 100 if target.life > 1 else min(400, target.batch * 4))

    assert kept <= KEPT_BYTES
    assert peak <= PEAK_BYTES


def test_a_seed_is_one_campaign(tmp_path: Path) -> None:
    class Recorder(Adverts):
        def run(self, data: bytes) -> Hashable:
            inputs.append(data)
            return super().run(data)

    several: list[list[bytes]] = []
    for seed in (1, 1, 2):
        inputs: list[bytes] = []
        fed(Recorder(), inputs=2000, seed=seed)
        several.append(inputs)

    assert several[0] == several[1]
    assert several[0] != several[2]
    assert tmp_path.exists()


# --- the campaign can fail ------------------------------------------------------------------------


def only(run: Campaign) -> campaign.Failure:
    (failure,) = run.failures.values()
    return failure


def test_a_reader_that_trusts_a_length_is_caught_and_its_input_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = claim._link_layer

    def trusting(frame: bytes, end: int, wanted: int) -> bytes | None:
        _ = frame[claim._ND_START + claim._ND_LEAST + 1]  # an option that need not be there
        return original(frame, end, wanted)

    monkeypatch.setattr(claim, "_link_layer", trusting)
    failure = only(fed(Claims(), inputs=60_000))
    assert failure.where.startswith("IndexError in ")

    path = failure.save(tmp_path)
    assert f"--replay {path}" in path.read_text()
    name, inputs = saved(path)
    assert fails(made(tmp_path, name), inputs) == failure.where
    monkeypatch.undo()
    assert fails(made(tmp_path, name), inputs) is None


def test_a_seal_that_believes_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trailer, "holds", lambda *_: True)

    assert only(fed(Adverts(), inputs=20_000)).why == "AssertionError: only what was signed is believed"


def test_a_table_without_a_bound_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Hearing.note

    def note(self: Hearing, index: int, advert: object, now_us: int) -> None:
        original(self, index, advert, now_us)  # type: ignore[arg-type]
        self._listed[index, str(advert).encode()] = {}

    monkeypatch.setattr(Hearing, "note", note)

    assert "Hearing._listed has" in only(fed(Brain("strangers"), inputs=6_000)).why


def test_a_deadline_that_does_not_get_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Brain):
        def begin(self) -> None:
            super().begin()
            monkeypatch.setattr(type(self._stage.node), "deadline", property(lambda _: 0))

    failure = only(fed(Stuck("strangers"), inputs=10))
    assert failure.why == "AssertionError: the deadline does not get on"


class Slow(Claims):
    longest_cpu_s = 0.002

    def run(self, data: bytes) -> Hashable:
        return len([each for _ in range(min(len(data), 60) * 400) for each in data[:8]]) and None


def test_an_input_that_takes_too_long_is_caught() -> None:
    assert only(fed(Slow(), inputs=50)).where == "time"


class Endless(Claims):
    def run(self, data: bytes) -> Hashable:
        while data[:1] == b"\xff":
            pass
        return None


def test_an_input_that_never_ends_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "ENDLESS_CPU_S", 0.2)

    assert "EndlessError" in only(fed(Endless(), inputs=5)).where


class Keeper(Claims):
    def seeds(self) -> Sequence[bytes]:
        self._kept: list[bytes] = []
        return super().seeds()

    def run(self, data: bytes) -> Hashable:
        self._kept.append(data * 100)
        return None


def test_a_reader_that_keeps_what_it_reads_is_caught() -> None:
    kept, _ = growth(Keeper(), 1, 400)

    assert kept > KEPT_BYTES
