# SPDX-License-Identifier: Apache-2.0
"""Bytes of a watch stream in, whole lines out. aiohttp's own reader gives up at 128 KiB a line."""

from collections.abc import Iterator
from typing import Final

LONGEST_LINE: Final = 8 * 1024 * 1024  # bytes; etcd refuses objects above 1.5 MiB


class LineTooLongError(ValueError):
    """A line is longer than the bound: not an API server's watch."""


class Lines:
    """Splits a stream at newlines. Holds at most one unfinished line of LONGEST_LINE bytes."""

    __slots__ = ("_longest", "_parts", "_size")

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that end within this chunk, without their newline; empty ones are left out."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = self._take(chunk[start:end])
            start = end + 1
            if line.strip():
                yield line
        self._keep(chunk[start:])

    @property
    def unfinished(self) -> bool:
        """Whether the stream stands in the middle of a line."""
        return self._size > 0

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._longest:
            raise LineTooLongError(f"a line is longer than {self._longest} bytes")
        if part:
            self._parts.append(part)

    def _take(self, last: bytes) -> bytes:
        self._keep(last)
        line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return line
