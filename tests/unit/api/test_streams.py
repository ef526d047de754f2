# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the watch: lines out of chunks, and waits between connections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api.backoff import FIRST_S, LIVED_S, LONGEST_S, delay_s, failures_after
from holdfast_api.lines import Lines, LineTooLongError


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b""))), st.data())
def test_lines_do_not_depend_on_how_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    splitter = Lines()
    found: list[bytes] = []
    while text:
        size = data.draw(st.integers(1, len(text)))
        found += splitter.feed(text[:size])
        text = text[size:]

    assert found == [line for line in lines if line.strip()]
    assert not splitter.unfinished


def test_an_unfinished_line_is_known() -> None:
    splitter = Lines()

    assert list(splitter.feed(b"a\nb")) == [b"a"]
    assert splitter.unfinished


def test_a_line_has_a_bound() -> None:
    splitter = Lines(longest=10)

    assert list(splitter.feed(b"0123456789\n")) == [b"0123456789"]
    assert list(splitter.feed(b"0123456789")) == []
    with pytest.raises(LineTooLongError):
        list(splitter.feed(b"0"))


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_stays_within_its_bounds(failures: int, chance: float) -> None:
    assert FIRST_S <= delay_s(failures, chance) <= LONGEST_S


def test_waits_double_up_to_the_longest() -> None:
    assert [delay_s(failures, 0.0) for failures in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 7.5, 7.5]
    assert delay_s(0, 0.5) == pytest.approx(0.3)


def test_a_stream_that_lived_starts_the_waits_anew() -> None:
    assert failures_after(7, LIVED_S) == 0
    assert failures_after(7, LIVED_S - 1) == 8
