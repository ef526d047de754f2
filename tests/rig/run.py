# SPDX-License-Identifier: Apache-2.0
"""One run of the rig: an id in every path and namespace, and a clean-up that removes only what carries it."""

import atexit
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from tests.rig.process import Process

PREFIX: Final = "hf"
NETNS: Final = Path("/run/netns")
_ID: Final = re.compile(rf"{PREFIX}-[0-9a-f]{{4}}")


class RigError(RuntimeError):
    """The rig could not do what was asked; the message says why and shows the log concerned."""


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: with its pid, a name that never comes again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


class Run:
    """Folder, namespaces and processes of one run. ``close`` removes them all; so do exit and Ctrl-C.

    Signals are the caller's business: ``end_on_sigterm`` turns a SIGTERM into a Ctrl-C.
    """

    def __init__(self) -> None:
        sweep()
        self.id, self.folder = _claim()
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self._processes: list[Process] = []
        self._namespaces: list[str] = []
        self._closed = False
        self._pid = os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace_name(self, name: str) -> str:
        return f"{self.id}-{name}"

    def add_namespace(self, name: str) -> Path:
        """A network namespace of this run, with ``lo`` up. Its path."""
        full = self.namespace_name(name)
        command("ip", "netns", "add", full)
        self._namespaces.append(full)
        command("ip", "-n", full, "link", "set", "lo", "up")
        return NETNS / full

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> Process:
        """Starts a program that ends when this process does; its log is ``logs/NAME.log`` (appended)."""
        log = self.logs / f"{name}.log"
        process = Process(name, argv, log=log, env=env, stdin=stdin, stdout=stdout)
        self._processes = [p for p in self._processes if p.running()]
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Ends what runs, last started first, and removes namespaces and folder. Again is no error."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        with _uninterrupted():
            for process in reversed(self._processes):
                process.kill()
            _remove(self.id, self.folder)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C would leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(*argv: str, stdin: str | None = None, check: bool = True) -> str:
    """Runs a short command and returns what it printed; a failure shows what it said."""
    done = subprocess.run(argv, check=False, input=stdin, capture_output=True, text=True, timeout=60)
    if check and done.returncode != 0:
        script = f"\n{stdin}" if stdin else ""
        raise RigError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip()}{script}")
    return done.stdout


def dying_with_parent(argv: Sequence[str]) -> list[str]:
    """The command, but killed by the kernel when the process that starts it dies."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def in_namespace(netns: Path | None, argv: Sequence[str]) -> list[str]:
    """The command inside a network namespace (None: where we are)."""
    return list(argv) if netns is None else ["nsenter", f"--net={netns}", *argv]


def end_on_sigterm() -> None:
    """From now on a SIGTERM is a KeyboardInterrupt, so that every ``with`` cleans up.

    So is a SIGINT, also in a program that a script put into the background with SIGINT ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)


def _claim() -> tuple[str, Path]:
    """A fresh id; its folder is made in the same step, and says who owns it."""
    base = Path(tempfile.gettempdir())
    for _ in range(100):
        run_id = f"{PREFIX}-{secrets.token_hex(2)}"
        folder = base / run_id
        if any(NETNS.glob(f"{run_id}-*")):
            continue
        try:
            folder.mkdir(mode=0o755)
        except FileExistsError:
            continue
        folder.chmod(0o755)  # the operator, who is nobody, must get at its kubeconfig
        owner = {"pid": os.getpid(), "start": _start_time(os.getpid())}
        (folder / "owner").write_text(json.dumps(owner))
        return run_id, folder
    raise RigError(f"no free run id under {base}: remove old {PREFIX}-* folders there")


def sweep() -> list[str]:
    """Removes what dead runs left: only folders whose recorded owner is gone. Their ids."""
    swept = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if not _ID.fullmatch(folder.name):
            continue
        try:
            owner = json.loads((folder / "owner").read_text())
            pid, start = int(owner["pid"]), owner["start"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours, or just being made
        if start is None or _start_time(pid) == start:
            continue
        _remove(folder.name, folder)
        swept.append(folder.name)
    return swept


def _remove(run_id: str, folder: Path) -> None:
    for netns in sorted(NETNS.glob(f"{run_id}-*")):
        for pid in command("ip", "netns", "pids", netns.name, check=False).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        command("ip", "netns", "del", netns.name, check=False)
    shutil.rmtree(folder, ignore_errors=True)
