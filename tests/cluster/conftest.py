# SPDX-License-Identifier: Apache-2.0
"""The operator as a process with its own token, and speakers that are puppets."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.puppets import Puppets
from tests.cluster.questions import NODES, Operator
from tests.rig.controlplane import ControlPlane
from tests.rig.process import Process
from tests.rig.run import Run, dying_with_parent

BIN = Path(sys.executable).parent


@pytest.fixture
def operator(clean_cluster: ControlPlane, run: Run, tmp_path: Path) -> Iterator[Operator]:
    """Starts operators by name; their logs are in the failure's output."""
    started: list[Process] = []

    def start(name: str, *flags: str) -> Process:
        kubeconfig = clean_cluster.operator_kubeconfig(tmp_path / f"{name}.kubeconfig")
        argv = [str(BIN / "holdfast-operator"), "--kubeconfig", str(kubeconfig), *flags]
        env = {k: v for k, v in os.environ.items() if k != "KUBECONFIG"}
        process = run.start(f"{name}-{tmp_path.name}", dying_with_parent(argv), env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.resume()
        process.kill()
        print(f"--- {process.name}\n{process.tail(60)}")


@pytest.fixture
def puppets(clean_cluster: ControlPlane) -> Iterator[Puppets]:
    admin = json.loads(clean_cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    with Puppets(clean_cluster, NODES, clean_cluster.api.as_user(admin)) as made:
        yield made
