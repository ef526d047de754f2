# SPDX-License-Identifier: Apache-2.0
"""The assembler's own rules; what the programs let through is tested against the kernel."""

import struct

import pytest

from holdfast_speaker import bpf


def test_jumps_count_the_instructions_between() -> None:
    program = bpf.assemble(
        bpf.load_half(12), bpf.jump_if(0x0806, "keep"), bpf.give(0), "keep", bpf.give(0xFFFF)
    )
    assert len(program) == 4 * 8
    assert struct.unpack_from("=HBBI", program, 8) == (0x15, 1, 0, 0x0806)


def test_a_jump_unless_skips_on_inequality() -> None:
    program = bpf.assemble(bpf.jump_unless(1, "end"), bpf.give(1), "end", bpf.give(0))
    assert struct.unpack_from("=HBBI", program, 0) == (0x15, 0, 1, 1)


@pytest.mark.parametrize("label", ["before", "nowhere"])
def test_a_label_that_is_not_ahead_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match=label):
        bpf.assemble("before", bpf.jump_if(1, label), bpf.give(0))
