# SPDX-License-Identifier: Apache-2.0
"""A short walk over many lives; `make soak` walks for an hour."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import command
from tests.sim.life import FIRST_DRESSED, Life
from tests.sim.mutations import DRESSED_MUTATIONS, MUTATIONS, replaced

ROOT = Path(__file__).parents[2]
SECONDS = 20


def recorded() -> list[int]:
    """Seeds that once found something."""
    lines = (ROOT / "tests/sim/seeds.txt").read_text().splitlines()
    return [int(word) for line in lines if not line.startswith("#") for word in line.split()]


SEEDS = [*range(1, 21), *recorded(), *range(FIRST_DRESSED, FIRST_DRESSED + 10)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_survives_what_a_seed_does_to_it(seed: int) -> None:
    """No two that hear each other hold an address for long; after quiet each address has one holder."""
    try:
        outcome = Life(seed).live(SECONDS)
    except AssertionError as wrong:
        pytest.fail(f"{wrong}\nreplay: {command(seed, SECONDS)} --trace")

    assert outcome.faults > 0


@pytest.mark.parametrize("mutation", [*MUTATIONS, *DRESSED_MUTATIONS])
def test_the_checkers_catch_a_planted_bug(mutation: str) -> None:
    first, changes = DRESSED_MUTATIONS.get(mutation) or (1, MUTATIONS[mutation])
    with replaced(*changes):
        caught = next((seed for seed in range(first, first + 29) if not survives(seed)), None)

    assert caught is not None


def survives(seed: int) -> bool:
    try:
        Life(seed).live(SECONDS)
    except AssertionError:
        return False
    return True


def test_two_hash_seeds_give_one_life() -> None:
    """Nothing depends on the order of a set."""
    code = "from tests.sim.life import Life; print(Life(5).live(20).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert len(digests) == 1
