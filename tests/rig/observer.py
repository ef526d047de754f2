# SPDX-License-Identifier: Apache-2.0
"""Programs of the rig's own, in a namespace: started, and told to give their account."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.rig.process import Process
from tests.rig.run import RigError, Run, dying_with_parent, in_namespace

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_SECONDS: Final = 15.0
_END_SECONDS: Final = 30.0


def start_own(run: Run, netns: Path, name: str, args: Sequence[str]) -> Process:
    """``python -m tests.rig.NAME ARGS``, which reads stdin and writes to stdout; the log has its stderr."""
    argv = [sys.executable, "-m", f"tests.rig.{name}", *args]
    return run.start(
        name,
        in_namespace(netns, dying_with_parent(argv)),
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


class Observer:
    """Such a program that says ``word`` once it observes, and all that it saw when its stdin ends.

    RigError if it did not start, or gave no account.
    """

    def __init__(self, run: Run, netns: Path, name: str, args: Sequence[str], *, word: str) -> None:
        self._process = start_own(run, netns, name, args)
        stdout = self._process.popen.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], _START_SECONDS)
        if not ready or stdout.readline() != f"{word}\n".encode():
            raise RigError(f"the {name} did not start:\n{self._process.tail()}")

    def account(self) -> dict[str, Any]:
        """Ends it. What it tells, from JSON."""
        out, _ = self._process.popen.communicate(timeout=_END_SECONDS)
        try:
            told: dict[str, Any] = json.loads(out)
        except ValueError:
            raise RigError(f"the {self._process.name} gave no account:\n{self._process.tail()}") from None
        return told

    def kill(self) -> None:
        self._process.kill()
