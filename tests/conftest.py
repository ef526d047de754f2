# SPDX-License-Identifier: Apache-2.0
"""What the tests stand on. A missing capability fails with its remedy; nothing here ever skips."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator

import pytest

from tests.rig import binaries
from tests.rig.cluster import Cluster
from tests.rig.controlplane import ControlPlane
from tests.rig.run import Run, end_on_sigterm

TOOLS = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "setpriv": "util-linux"}
REMEDY = "run `make setup` as root on Debian 12 or later"
Say = Callable[[str], None]


def pytest_configure() -> None:
    end_on_sigterm()


def missing_capability() -> str | None:
    """What the rig needs and this machine lacks, in words with the remedy; None when all is there."""
    if os.geteuid() != 0:
        return "the rig makes network namespaces and needs root: run the tests as root"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"{tool} is not in PATH: apt-get install {package}, or {REMEDY}"
    return None


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Say:
    """Words for whoever waits at the terminal, past pytest's capture."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def out(text: str) -> None:
        if capture is None:
            binaries.say_on_stderr(text)
            return
        with capture.global_and_fixture_disabled():
            binaries.say_on_stderr(text)

    return out


@pytest.fixture(scope="session")
def rig_ready() -> None:
    """Fails, with the remedy, where the rig can't run."""
    missing = missing_capability()
    if missing:
        pytest.fail(missing, pytrace=False)


@pytest.fixture(scope="session")
def run(rig_ready: None) -> Iterator[Run]:  # noqa: ARG001  pytest orders fixtures by their arguments
    """The session's run: folder, namespaces and processes, all removed at the end."""
    with Run() as made:
        yield made


@pytest.fixture(scope="session")
def control_plane(run: Run, say: Say) -> Iterator[ControlPlane]:
    """A real API server on the loopback, with Holdfast's CRDs, rights and admission policy."""
    try:
        made = ControlPlane(run, say=say).launch()
    except binaries.MissingToolError as missing:
        pytest.fail(str(missing), pytrace=False)
    yield made
    made.close()


@pytest.fixture
def clean_cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The session's control plane, without Holdfast objects and Nodes before and after the test."""
    remove_objects(control_plane)
    yield control_plane
    remove_objects(control_plane)


@pytest.fixture(scope="session")
def shared_cluster(rig_ready: None, say: Say) -> Iterator[Cluster]:  # noqa: ARG001  as above
    """Three hosts, one operator, one client; ask for ``cluster`` instead."""
    try:
        with Cluster(hosts=3, say=say) as made:
            yield made
    except binaries.MissingToolError as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The session's cluster as new: all up, no fault, no VirtualIP, nothing bound."""
    shared_cluster.reset()
    return shared_cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed story shows its cluster: objects, addresses, ends of logs."""
    report = yield
    used: dict[str, object] = getattr(item, "funcargs", {})
    made = used.get("cluster")
    if report.failed and isinstance(made, Cluster):
        report.sections.append(("the cluster", made.describe()))
    return report


def remove_objects(control_plane: ControlPlane) -> None:
    """Deletes every Holdfast object, every Node and every Lease of ours."""
    for kind in ("VirtualIP", "VirtualIPPool", "VirtualRouter", "Speaker", "Node"):
        control_plane.api.delete_all(kind)
    for namespace in ("holdfast-system", "holdfast-speakers"):
        control_plane.api.delete_all("Lease", namespace)
