# SPDX-License-Identifier: Apache-2.0
"""What several stories stand on."""

from collections.abc import Iterator

import pytest

from tests.rig.fleet import Fleet
from tests.rig.run import Run


@pytest.fixture
def fleet(rig_ready: None) -> Iterator[Fleet]:  # noqa: ARG001  root and tools, or a failure that says so
    """Three hosts of its own, a switch and a client; no API."""
    with Run() as run:
        yield Fleet(run)
