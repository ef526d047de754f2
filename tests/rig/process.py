# SPDX-License-Identifier: Apache-2.0
"""One started program: its log, its signals, its end. Dies with the process that started it."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 25
TAIL_COLUMNS = 300


class Process:
    """A program in the background, in a session of its own (a Ctrl-C in the terminal is not for it).

    ``argv`` must end in exec all the way down, so that the pid is the program's own. Start it from the
    main thread: the kernel ends it (SIGKILL) when the thread that started it ends.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as sink:
            self._popen = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=sink if stdout is None else stdout,
                stderr=sink if stdout is not None else subprocess.STDOUT,
                env=None if env is None else dict(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        return self._popen

    def running(self) -> bool:
        return self._popen.poll() is None

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(line[:TAIL_COLUMNS] for line in text.splitlines()[-lines:]) or "(an empty log)"

    def signal(self, number: signal.Signals) -> None:
        if self.running():
            self._popen.send_signal(number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._popen.wait()

    def terminate(self, timeout_s: float = 10.0) -> int:
        """SIGTERM; SIGKILL when that is not enough. Its exit code."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.wait()

    def rss_bytes(self) -> int:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """CPU time used so far, user and system."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
