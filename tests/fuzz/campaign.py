# SPDX-License-Identifier: Apache-2.0
"""The loop: rounds of inputs for every target, bounds on time and memory, failures kept and replayed.

The same seed gives the same inputs in the same order; only how far it gets depends on the machine.
"""

import gc
import hashlib
import re
import signal
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final

from tests.fuzz.brain import HEAVY, Brain
from tests.fuzz.targets import (
    Adverts,
    Claims,
    Inquiries,
    KeyContents,
    Kubeconfig,
    Netlink,
    Objects,
    PlanFiles,
    Schema,
    Target,
    Watch,
)

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path(__file__).parent / "corpus"
KNOWN: Final = Path(__file__).parent / "known.txt"
ENDLESS_CPU_S: Final = 10
MOST_IN_POOL: Final = 400
KEPT_BYTES: Final = 512 * 1024  # that a target may keep after thousands of inputs
PEAK_BYTES: Final = 40 * 1024 * 1024  # while it reads one; a plan file may have 32 MiB
_SHRINK_S: Final = 15.0  # spent on making one failure smaller
_MOST_FAILURES: Final = 20


def targets(folder: Path) -> list[Target]:
    """Each with a state of its own; ``folder`` is for those that read files."""
    segment: list[Target] = [
        Adverts(),
        Claims(),
        Inquiries(),
        Brain("strangers"),
        Brain("sealed"),
        Brain("brain"),
    ]
    return [
        *segment,
        Objects(),
        Schema(),
        Watch(),
        Kubeconfig(folder),
        PlanFiles(folder),
        KeyContents(),
        Netlink(),
    ]


def known(target: str) -> tuple[str, ...]:
    """How the places of failures begin that wait for their remedy. They are counted and fail nothing."""
    lines = (line.partition(" ") for line in KNOWN.read_text().splitlines() if line and line[0] != "#")
    return tuple(where for name, _, where in lines if name == target)


class EndlessError(Exception):
    """One input took ENDLESS_CPU_S."""


@dataclass(frozen=True)
class Failure:
    """``inputs``: what to feed one after the other; the last one fails."""

    target: str
    why: str
    where: str
    inputs: tuple[bytes, ...]

    def save(self, folder: Path) -> Path:
        digest = hashlib.sha256(b"\n".join(self.inputs)).hexdigest()[:12]
        path = folder / f"{self.target}-{digest}.hex"
        said = "\n".join(f"# {line}" for line in [*self.why.splitlines()[:3], self.where])
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        command = f"# replay: python -m tests.fuzz --replay {shown}"
        lines = "\n".join(each.hex() or "-" for each in self.inputs)
        path.write_text(f"# SPDX-License-Identifier: Apache-2.0\n{said}\n{command}\n{lines}\n")
        return path


def saved(path: Path) -> tuple[str, tuple[bytes, ...]]:
    """The target's name and the inputs in a file of the corpus."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    inputs = tuple(b"" if line == "-" else bytes.fromhex(line) for line in lines)
    return path.stem.rpartition("-")[0], inputs


@dataclass
class Tally:
    inputs: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)


class Campaign:
    """``seed`` decides everything but the length."""

    def __init__(self, made: Sequence[Target], seed: int) -> None:
        self.tallies = {target.name: Tally() for target in made}
        self.failures: dict[tuple[str, str], Failure] = {}
        self.repeated = 0
        self.waiting = 0  # of those that are known
        self._known = {target.name: known(target.name) for target in made}
        self._targets = made
        self._rngs = {target.name: Random(f"{seed}/{target.name}") for target in made}
        self._pools = {target.name: list(target.seeds()) for target in made}
        self._kinds: dict[str, set[object]] = {target.name: set() for target in made}
        self._lives: dict[str, list[bytes]] = {}
        self._current = 0
        for path in sorted(CORPUS.glob("*.hex")):
            name, inputs = saved(path)
            if name in self._pools:
                self._pools[name].append(inputs[-1] or b"\0")

    @property
    def inputs(self) -> int:
        return sum(tally.inputs for tally in self.tallies.values())

    def run(self, *, until: Callable[[], bool]) -> None:
        """Rounds until it is time; the first answers to the seeds as they are."""
        with _interrupting(lambda: self._current):
            for target in self._targets:
                for data in list(self._pools[target.name]):
                    self.feed(target, data)
            gc.collect()
            gc.freeze()
            while not until() and len(self.failures) < _MOST_FAILURES:
                for target in self._targets:
                    pool, rng = self._pools[target.name], self._rngs[target.name]
                    for _ in range(target.batch):
                        self.feed(target, target.make(rng, pool))
                    if until():
                        break

    def feed(self, target: Target, data: bytes) -> None:
        life = self._lives.get(target.name)
        fresh = life is None or len(life) >= target.life > 1
        if life is None or fresh:
            life = self._lives[target.name] = []
        if target.life > 1:
            life.append(data)
        self._current += 1
        tally = self.tallies[target.name]
        started = time.thread_time_ns()
        try:
            if fresh:
                target.begin()
                started = time.thread_time_ns()
            kind = _answer(target, data)
            if isinstance(target, Brain) and len(life) == target.life:
                target.bounded()
        except Exception as error:
            self._failed(target, tuple(life) if target.life > 1 else (data,), error)
            self._lives.pop(target.name)
            return
        took_s = (time.thread_time_ns() - started) / 1e9
        tally.inputs += 1
        tally.cpu_s += took_s
        if took_s > tally.slowest_s:
            tally.slowest_s = took_s
            if took_s > target.longest_cpu_s * _weight(target, data):
                self._slow(target, tuple(life) if target.life > 1 else (data,))
        kinds = self._kinds[target.name]
        if kind not in kinds and len(kinds) < MOST_IN_POOL:
            kinds.add(kind)
            if data:
                self._pools[target.name].append(data)

    def _slow(self, target: Target, inputs: tuple[bytes, ...]) -> None:
        """Too slow three times is a failure; once may be the machine."""
        best_s = min(_time_of_last(target, inputs) for _ in range(3))
        self.tallies[target.name].slowest_s = best_s
        if best_s > target.longest_cpu_s * _weight(target, inputs[-1]):
            self._keep(Failure(target.name, f"took {best_s * 1000:.0f} ms of CPU", "time", inputs))
        self._lives.pop(target.name, None)

    def _failed(self, target: Target, inputs: tuple[bytes, ...], error: Exception) -> None:
        where = _where(error)
        if where.startswith(self._known[target.name]):
            self.waiting += 1
            return
        if (target.name, where) in self.failures:
            self.repeated += 1
            return
        small = smaller(target, inputs, where)
        self._keep(Failure(target.name, f"{type(error).__name__}: {str(error)[:200]}", where, small))

    def _keep(self, failure: Failure) -> None:
        self.failures.setdefault((failure.target, failure.where), failure)


def _weight(target: Target, data: bytes) -> int:
    """How many inputs this one stands for: time that passes for the brain is many deadlines."""
    return 20 if isinstance(target, Brain) and data[:1] in HEAVY else 1


def _answer(target: Target, data: bytes) -> object:
    try:
        return target.run(data)
    except target.declared as error:
        return type(error).__name__, str(error)[:24]


def _where(error: BaseException) -> str:
    """The last place in the project's own code, which tells one failure from another."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if "holdfast" in Path(each.filename).parts[-2:][0]] or list(frames)[-1:]
    inner = ours[-1]
    what = re.sub(r"[^A-Za-z. ]+", "", str(error)) if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} in {Path(inner.filename).name}:{inner.name} {what[:80]}".rstrip()


def fails(target: Target, inputs: Sequence[bytes]) -> str | None:
    """Where a life of these inputs ends in a failure; None: it goes well."""
    try:
        target.begin()
        for data in inputs:
            _answer(target, data)
        if isinstance(target, Brain):
            target.bounded()
    except Exception as error:
        return _where(error)
    return None


def _time_of_last(target: Target, inputs: Sequence[bytes]) -> float:
    target.begin()
    for data in inputs[:-1]:
        _answer(target, data)
    started = time.thread_time_ns()
    _answer(target, inputs[-1])
    return (time.thread_time_ns() - started) / 1e9


def smaller(target: Target, inputs: tuple[bytes, ...], where: str) -> tuple[bytes, ...]:
    """Fewer and shorter inputs that fail at the same place."""
    until = time.monotonic() + _SHRINK_S

    def still(candidate: Sequence[bytes]) -> bool:
        return time.monotonic() < until and fails(target, candidate) == where

    step = len(inputs) // 2
    while step:
        at = 0
        while at + step <= len(inputs) and len(inputs) > 1:
            rest = inputs[:at] + inputs[at + step :]
            if rest and still(rest):
                inputs = rest
            else:
                at += step
        step //= 2
    last, step = inputs[-1], len(inputs[-1]) // 2
    while step:
        at = 0
        while at + step <= len(last):
            rest_of_last = last[:at] + last[at + step :]
            if still((*inputs[:-1], rest_of_last)):
                last = rest_of_last
            else:
                at += step
        step //= 2
    return (*inputs[:-1], last)


@contextmanager
def _interrupting(current: Callable[[], int]) -> Iterator[None]:
    """An input that does not end is interrupted after ENDLESS_CPU_S of CPU."""
    seen = -1

    def tick(_signal: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if current() == seen:
            raise EndlessError(f"one input took more than {ENDLESS_CPU_S} s")
        seen = current()

    before = signal.signal(signal.SIGPROF, tick)
    signal.setitimer(signal.ITIMER_PROF, ENDLESS_CPU_S, ENDLESS_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def growth(target: Target, seed: int, inputs: int) -> tuple[int, int]:
    """Bytes kept by the second half of so many inputs, and the most that one input took while it ran."""
    rng, pool = Random(f"{seed}/memory/{target.name}"), list(target.seeds())
    prepared = [target.make(rng, pool) for _ in range(inputs)]
    peak = kept = 0
    tracemalloc.start()
    try:
        for half in (prepared[: inputs // 2], prepared[inputs // 2 :]):
            target.begin()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for data in half:
                tracemalloc.reset_peak()
                base = tracemalloc.get_traced_memory()[0]
                with suppress(Exception):  # the campaign tells of those
                    _answer(target, data)
                peak = max(peak, tracemalloc.get_traced_memory()[1] - base)
            if target.life > 1:
                target.begin()  # what one life kept ends with it; its tables are bounded by themselves
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return kept, peak
