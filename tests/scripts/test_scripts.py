# SPDX-License-Identifier: Apache-2.0
"""The recorded stories: what the brain does is what the file says. REWRITE=1 records it anew.

A script is blocks of commands, ``----`` and what came out. Commit only a difference that you understand.
"""

import os
from pathlib import Path

import pytest

from tests.scripts.stage import Stage

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


def replay(script: str) -> str:
    """The same script with what comes out now."""
    stage = Stage()
    out: list[str] = []
    for block in script.rstrip("\n").split("\n\n"):
        lines = block.splitlines()
        given = lines[: lines.index("----")] if "----" in lines else lines
        commands = [line for line in given if line and not line.startswith("#")]
        for command in commands:
            stage.perform(command)
        out.append("\n".join([*given, "----", *stage.close()] if commands else given))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_brain_does_what_the_script_says(path: Path) -> None:
    recorded = path.read_text()
    now = replay(recorded)
    if os.environ.get("REWRITE"):
        path.write_text(now)
        return

    assert now.splitlines() == recorded.splitlines()


def test_there_is_a_story_for_each_thing_a_user_asks_about() -> None:
    told = {path.stem for path in SCRIPTS}

    assert told >= {
        "first_take",
        "failover",
        "resignation",
        "preempt",
        "flush",
        "probe_answered",
        "garbage",
        "stop",
        "stop_followed",
        "handover_from",
        "handover_to",
        "handover_dead",
        "dropped",
        "lease_lost",
        "fence_refused",
        "heard_at_take",
        "oneway",
        "isolated",
        "unheeded",
        "leftovers",
        "leftovers_taken",
        "conflict",
    }
