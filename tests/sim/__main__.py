# SPDX-License-Identifier: Apache-2.0
"""Replay one seed, or walk over many."""

import argparse
import sys
import time

from tests.sim.life import FIRST_DRESSED, Life


def replay(seed: int, seconds: int, *, trace: bool) -> None:
    lines: list[str] | None = [] if trace else None
    try:
        outcome = Life(seed, lines=lines).live(seconds)
    except AssertionError as wrong:
        print("\n".join(lines or []))
        print(f"seed {seed}: {wrong}\n  replay: {command(seed, seconds)} --trace")
        raise SystemExit(1) from wrong
    print("\n".join(lines or []))
    print(
        f"seed {seed}: {outcome.faults} faults, longest double holding "
        f"{outcome.longest_pair_us / 1000:.0f} ms, "
        f"digest {outcome.digest[:16]}"
    )


def command(seed: int, seconds: int) -> str:
    return f"python -m tests.sim --seed {seed} --seconds {seconds}"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    arguments.add_argument("--seed", type=int, default=1, help="the life to live")
    arguments.add_argument("--seconds", type=int, default=60, help="simulated seconds with faults")
    arguments.add_argument("--trace", action="store_true", help="print every effect")
    arguments.add_argument("--soak", type=int, default=0, help="walk over seeds for that many real seconds")
    options = arguments.parse_args()
    if not options.soak:
        replay(options.seed, options.seconds, trace=options.trace)
        return
    until = time.monotonic() + options.soak
    seed = options.seed
    while time.monotonic() < until:
        for each in (seed, FIRST_DRESSED + seed):
            replay(each, options.seconds, trace=False)
        sys.stdout.flush()
        seed += 1


if __name__ == "__main__":
    main()
