# SPDX-License-Identifier: Apache-2.0
"""Feed everything with damaged inputs for a while, or repeat what once failed."""

import argparse
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import (
    CORPUS,
    KEPT_BYTES,
    PEAK_BYTES,
    Campaign,
    fails,
    growth,
    saved,
    targets,
)


def campaign(folder: Path, seconds: float, seed: int, only: list[str]) -> bool:
    """Whether all went well; prints what was fed and what failed."""
    made = [target for target in targets(folder) if not only or target.name in only]
    run = Campaign(made, seed)
    started = time.monotonic()
    said = started

    def until() -> bool:
        nonlocal said
        now = time.monotonic()
        if now - said >= 60:
            said = now
            print(f"{now - started:.0f} s: {run.inputs:,} inputs, {len(run.failures)} failures", flush=True)
        return now - started >= seconds

    run.run(until=until)
    took_s = time.monotonic() - started
    print(f"{'target':<12}{'inputs':>12}{'us each':>9}{'slowest ms':>12}")
    for name, tally in run.tallies.items():
        each_us = tally.cpu_s * 1e6 / max(1, tally.inputs)
        print(f"{name:<12}{tally.inputs:>12,}{each_us:>9.1f}{tally.slowest_s * 1000:>12.1f}")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"seed {seed}: {run.inputs:,} inputs in {took_s:.0f} s, {run.inputs / took_s:,.0f} a second, "
        f"{largest} MiB at most"
    )
    for failure in run.failures.values():
        path = failure.save(CORPUS)
        print(f"FAILED {failure.target}: {failure.why}\n  {failure.where}")
        print(f"  {len(failure.inputs)} inputs kept; replay: python -m tests.fuzz --replay {path}")
    print(
        f"{len(run.failures)} failures, seen {run.repeated} times more; known ones: {run.waiting}", flush=True
    )
    return remembers(folder, seed, only) and not run.failures


def remembers(folder: Path, seed: int, only: list[str], inputs: int = 3000) -> bool:
    """Whether every target forgets what it was fed; prints what it kept."""
    well = True
    for target in targets(folder):
        if only and target.name not in only:
            continue
        kept, peak = growth(target, seed, min(inputs, target.batch * 20))
        bad = kept > KEPT_BYTES or peak > PEAK_BYTES
        well = well and not bad
        verdict = "FAILED " if bad else ""
        print(
            f"{verdict}memory {target.name}: {kept / 1024:.0f} KiB kept, {peak / 1024:.0f} KiB for one input"
        )
    return well


def replay(folder: Path, path: Path) -> bool:
    name, inputs = saved(path)
    target = next(each for each in targets(folder) if each.name == name)
    where = fails(target, inputs)
    print(f"{path.name}: {where or 'goes well'}")
    return where is None


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=60, help="how long (%(default)s)")
    arguments.add_argument("--seed", type=int, default=1, help="decides every input (%(default)s)")
    arguments.add_argument("--target", action="append", default=[], help="only this one, again for more")
    arguments.add_argument("--replay", type=Path, help="a file that an earlier campaign kept")
    options = arguments.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="holdfast-fuzz-") as name:
        folder = Path(name)
        if options.replay is not None:
            well = replay(folder, options.replay)
        else:
            well = campaign(folder, options.seconds, options.seed, options.target)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
