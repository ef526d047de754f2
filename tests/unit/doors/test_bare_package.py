# SPDX-License-Identifier: Apache-2.0
"""The import shims: what they spare, and that nobody else notices."""

import subprocess
import sys

import pytest

from holdfast_speaker.bare_package import bare_package


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_address_door_loads_a_handful_of_pyroute2() -> None:
    script = (
        "import sys, holdfast_speaker.addresses.kernel\n"
        "print(len([name for name in sys.modules if name.startswith('pyroute2')]))"
    )
    assert int(run(script)) < 20


def test_pyroute2_imports_as_ever_afterwards() -> None:
    script = (
        "import holdfast_speaker.addresses.kernel as door\n"
        "import pyroute2, pyroute2.netlink.rtnl.ifaddrmsg as real\n"
        "print(pyroute2.AsyncIPRoute.__name__, real.ifaddrmsg is door.ifaddrmsg)"
    )
    assert run(script) == "AsyncIPRoute True"


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError) as told, bare_package("no_such_package"):
        pass
    assert told.value.name == "no_such_package"
