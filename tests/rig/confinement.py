# SPDX-License-Identifier: Apache-2.0
"""How a program is locked in as its pod would be: mounts, user, capabilities, no new privileges.

Everything ends in exec, so the pid that is started is the program's own.
"""

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.run import RigError

NOBODY: Final = 65534
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a pod's security context says. ``run_folder`` becomes the program's /run."""

    netns: Path
    run_folder: Path
    hostname: str
    uid: int = 0
    capabilities: tuple[str, ...] = ()

    def argv(self, program: Sequence[str]) -> list[str]:
        """The program inside: own mount namespace, read-only root and /proc/sys, only these capabilities."""
        return [
            "nsenter",
            f"--net={self.netns}",
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            self._script(program),
        ]

    def _script(self, program: Sequence[str]) -> str:
        lines = [
            "set -e",
            f"mount --bind {shlex.quote(str(self.run_folder))} /run",
            *self._reach(ROOT, Path(sys.base_prefix)),
            "mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys",
            "mount --bind /proc/sys /proc/sys",
            "mount -o remount,bind,ro /proc/sys",
            "mount -o remount,bind,ro /",
            f"hostname {shlex.quote(self.hostname)}",
            "cd /",
            f"exec {shlex.join([*self._setpriv(), *program])}",
        ]
        return "\n".join(lines)

    def _setpriv(self) -> list[str]:
        kept = ",".join(["-all", *(f"+{c}" for c in self.capabilities)])
        argv = ["setpriv", "--inh-caps=-all", f"--bounding-set={kept}", "--no-new-privs", "--clear-groups"]
        if self.uid:
            argv += [f"--reuid={self.uid}", f"--regid={self.uid}"]
        return [*argv, "--pdeathsig", "KILL", "--"]

    def _reach(self, *folders: Path) -> list[str]:
        """Mounts that let ``uid`` get at folders below one it may not enter (a python under /root)."""
        lines: list[str] = []
        covered: set[Path] = set()
        hidden = [(folder, door) for folder in folders if (door := _closed_door(folder, self.uid))]
        for index, (folder, _) in enumerate(hidden):
            lines.append(f"mkdir -p /run/.reach{index}")
            lines.append(f"mount --bind {shlex.quote(str(folder))} /run/.reach{index}")
        for index, (folder, door) in enumerate(hidden):
            if door == folder:
                raise RigError(f"{folder} is closed to uid {self.uid}: chmod o+rx {folder}")
            if door not in covered:
                covered.add(door)
                lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(door))}")
            lines.append(f"mkdir -p {shlex.quote(str(folder))}")
            lines.append(f"mount --bind /run/.reach{index} {shlex.quote(str(folder))}")
        return lines


def _closed_door(folder: Path, uid: int) -> Path | None:
    """The topmost folder on the way (or the folder itself) that ``uid`` without capabilities can't enter."""
    for door in [*reversed(folder.parents), folder]:
        status = os.stat(door)
        bit = stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH
        if not status.st_mode & bit:
            return door
    return None
