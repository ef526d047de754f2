# SPDX-License-Identifier: Apache-2.0
"""What the API server can answer, and what can be said when it does not."""

from typing import Final

import aiohttp
import msgspec

LARGEST_BODY: Final = 128 * 1024 * 1024  # bytes; a page of 50 of the largest objects etcd takes


# What msgspec raises for bytes that are no JSON of the wanted kind; the latter two: nested a thousand deep,
# and text that is no UTF-8.
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class ApiTrouble(Exception):  # noqa: N818 - the family; its members say Error or Unreachable
    """Any reason why a request has no good answer."""


class ApiError(ApiTrouble):
    """The API server answered with a Status. ``causes`` are (field, message), one for each wrong field."""

    def __init__(
        self, status: int, reason: str, message: str, causes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes


class ApiUnreachable(ApiTrouble):
    """No answer in time, no connection, or an answer that is none."""


class _Cause(msgspec.Struct):
    field: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class Status(msgspec.Struct):
    """metav1.Status, as far as anybody here asks."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


async def read(response: aiohttp.ClientResponse, longest: int = LARGEST_BODY) -> bytes:
    """The whole body; ApiUnreachable when it is longer than ``longest`` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > longest:
            raise ApiUnreachable(f"the answer is longer than {longest} bytes")
        parts.append(part)
    return b"".join(parts)


def hang_up(response: aiohttp.ClientResponse) -> None:
    """Ends an answer in the middle. A polite end of TLS would wait for a server that is still talking."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def api_error(status: int, answer: bytes) -> ApiError:
    """The Status in an answer, or what can be said without one."""
    try:
        said = msgspec.json.decode(answer, type=Status)
    except UNREADABLE:
        return ApiError(status, "Unknown", answer[:200].decode("utf-8", "replace").strip() or "no message")
    causes = tuple((cause.field, cause.message) for cause in said.details.causes) if said.details else ()
    return ApiError(status, said.reason or "Unknown", said.message or "no message", causes)
