# SPDX-License-Identifier: Apache-2.0
"""Open TCP connections: an echo service on a host, and a client that talks to it."""

import socket
import sys
import time

from tests.rig.api import socket_in
from tests.rig.hosts import Host
from tests.rig.network import netns_path
from tests.rig.process import Process

PORT = 8080

LISTENER = """
import socket, threading, sys
def serve(conn):
    while data := conn.recv(4096):
        conn.sendall(data)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def listen(host: Host, port: int = PORT) -> Process:
    """An echo service on all of the host's addresses, whichever come and go."""
    return host.start(f"echo-{port}", [sys.executable, "-c", LISTENER, str(port)])


class Talk:
    """A client's open connection: asks, waits for the echo, asks again; and how that ended."""

    def __init__(self, client: str, address: str, port: int = PORT) -> None:
        deadline = time.monotonic() + 5
        while not self._connects(client, address, port):
            assert time.monotonic() < deadline, f"nobody listens on {address}:{port}"
            time.sleep(0.05)
        self.end = "alive"
        self.longest_ms = 0.0  # from a question to its echo

    def _connects(self, client: str, address: str, port: int) -> bool:
        self._socket = socket_in(netns_path(client), socket.AF_INET, socket.SOCK_STREAM)
        self._socket.settimeout(0.2)
        try:
            self._socket.connect((address, port))
        except OSError:
            self._socket.close()
            return False
        return True

    def on(self, seconds: float) -> None:
        """Goes on talking, until that time or the connection's end."""
        until = time.monotonic() + seconds
        while self.end == "alive" and time.monotonic() < until:
            asked = time.monotonic()
            try:
                self._socket.sendall(b"x")
                self._hear(asked)
            except OSError as error:
                self.end = type(error).__name__
            self.longest_ms = max(self.longest_ms, (time.monotonic() - asked) * 1000)
            time.sleep(0.002)

    def _hear(self, asked: float) -> None:
        """The echo; TCP repeats by itself what gets lost, so a wait of seconds is no end."""
        while True:
            try:
                assert self._socket.recv(100) != b"", "a closed connection"
                return
            except TimeoutError:
                assert time.monotonic() < asked + 8, "a connection that hangs"

    def close(self) -> None:
        self._socket.close()
