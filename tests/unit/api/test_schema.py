# SPDX-License-Identifier: Apache-2.0
"""The decoder against the table; tests/cluster/test_crds.py asks a real API server the same."""

import pytest

from holdfast_api import schema
from holdfast_api.decode import DecodeError, decode, decode_file
from tests.cluster.objects import Case, meets, table


@pytest.mark.parametrize("case", table("good"), ids=lambda case: case.name)
def test_a_good_object_becomes_a_struct(case: Case) -> None:
    decoded = decode_file(case.object)

    assert type(decoded).__name__ == case.kind


@pytest.mark.parametrize("case", table("bad"), ids=lambda case: case.name)
def test_a_bad_object_is_refused_for_all_its_errors_at_once(case: Case) -> None:
    _, errors = schema.check(case.object)

    assert meets(errors, case), errors


@pytest.mark.parametrize("case", table("changes"), ids=lambda case: case.name)
def test_a_change_is_refused_for_what_may_not_change(case: Case) -> None:
    assert case.before is not None
    _, errors = schema.check(case.object, case.before)

    assert meets(errors, case), errors


def test_unknown_fields_are_errors_in_files_only() -> None:
    case = next(case for case in table("bad") if case.unknown)

    with pytest.raises(DecodeError) as refused:
        decode_file(case.object)

    assert {error.field for error in refused.value.errors} == set(case.unknown)
    assert type(decode(case.object)).__name__ == case.kind
