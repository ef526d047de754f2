# SPDX-License-Identifier: Apache-2.0
"""Classic BPF socket filters, assembled by hand (no libpcap needed). linux/filter.h, linux/bpf_common.h.

A program is a list of instructions with labels (plain strings) between them; jumps go forward to a label.
"""

import ctypes
import socket
import struct
from dataclasses import dataclass
from typing import Final

_SO_ATTACH_FILTER: Final = 26
_ANCILLARY: Final = 0xFFFFF000  # SKF_AD_OFF
PACKET_TYPE: Final = 4
NETLINK_ATTRIBUTE: Final = 12
VLAN_TAG: Final = 44
VLAN_TAG_PRESENT: Final = 48


@dataclass(frozen=True, slots=True)
class Instruction:
    code: int
    value: int
    if_true: str | None = None
    if_false: str | None = None


Program = bytes


def load_half(offset: int) -> Instruction:
    return Instruction(0x28, offset)


def load_byte(offset: int) -> Instruction:
    return Instruction(0x30, offset)


def load_byte_indexed(offset: int) -> Instruction:
    return Instruction(0x50, offset)


def load_ancillary(field: int) -> Instruction:
    return Instruction(0x20, _ANCILLARY + field)


def load_constant(value: int) -> Instruction:
    return Instruction(0x00, value)


def set_index(value: int) -> Instruction:
    return Instruction(0x01, value)


def index_from_accumulator() -> Instruction:
    return Instruction(0x07, 0)


def mask(value: int) -> Instruction:
    return Instruction(0x54, value)


def jump_if(value: int, target: str) -> Instruction:
    return Instruction(0x15, value, if_true=target)


def jump_unless(value: int, target: str) -> Instruction:
    return Instruction(0x15, value, if_false=target)


def jump_if_at_least(value: int, target: str) -> Instruction:
    return Instruction(0x35, value, if_true=target)


def give(length: int) -> Instruction:
    """The verdict: how many bytes of the packet pass (0: none)."""
    return Instruction(0x06, length)


def assemble(*parts: Instruction | str) -> Program:
    """The kernel's ``struct sock_filter`` array. Raises ValueError for an unknown or backward label."""
    places: dict[str, int] = {}
    code: list[Instruction] = []
    for part in parts:
        if isinstance(part, str):
            places[part] = len(code)
        else:
            code.append(part)

    def distance(label: str | None, here: int) -> int:
        if label is None:
            return 0
        steps = places.get(label, -1) - here - 1
        if not 0 <= steps <= 255:
            raise ValueError(f"label {label!r} is not ahead of instruction {here}")
        return steps

    return b"".join(
        struct.pack("=HBBI", i.code, distance(i.if_true, here), distance(i.if_false, here), i.value)
        for here, i in enumerate(code)
    )


def attach(sock: socket.socket, program: Program) -> None:
    """Only what the program lets through reaches the socket from now on. Raises OSError."""
    memory = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(program) // 8, ctypes.addressof(memory)),
    )
