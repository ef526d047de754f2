# SPDX-License-Identifier: Apache-2.0
"""Small networks in namespaces of this test's own: ``hfd-<random>-NAME``, gone at its end."""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Net:
    """Namespaces joined by cables and bridges, set up with iproute2."""

    def __init__(self) -> None:
        self.prefix = f"hfd-{secrets.token_hex(3)}"
        self.names: list[str] = []

    def add(self, name: str) -> str:
        full = f"{self.prefix}-{name}"
        subprocess.run(["ip", "netns", "add", full], check=True)
        self.names.append(full)
        self.ip(name, "link set lo up")
        return full

    def full(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def ip(self, name: str, *lines: str) -> str:
        """These ``ip`` commands, in one go."""
        argv = ["ip", "-n", self.full(name), "-batch", "-"]
        done = subprocess.run(
            argv, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, name: str, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.full(name), *argv], text=True, capture_output=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def cable(self, one: str, nic: str, other: str, port: str) -> None:
        peer = f"peer name {port} netns {self.full(other)}"
        self.ip(one, f"link add {nic} type veth {peer}", f"link set {nic} up")
        self.ip(other, f"link set {port} up")

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread works in that namespace meanwhile; sockets it opens stay there."""
        with open("/proc/thread-self/ns/net") as home, open(Path("/run/netns") / self.full(name)) as there:
            self._enter(there.fileno())
            try:
                yield
            finally:
                self._enter(home.fileno())

    def _enter(self, fd: int) -> None:
        if _libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
