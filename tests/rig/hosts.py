# SPDX-License-Identifier: Apache-2.0
"""A host: a namespace with a NIC, a /run of its own, and a speaker confined as in its pod."""

import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast_speaker import virtual_mac
from tests.rig.api import socket_in
from tests.rig.confinement import ROOT, Confinement
from tests.rig.network import Cable, Segment, bound, mac_of, netns_path
from tests.rig.process import Process
from tests.rig.run import RigError, Run, command, dying_with_parent, in_namespace

BIN: Final = ROOT / ".venv" / "bin"
SECRETS: Final = "holdfast-rig"  # below the host's /run: the kubeconfig, which a pod would mount
METRICS: Final = ("127.0.0.1", 9441)
SPEAKER_CAPABILITIES: Final = ("net_admin", "net_raw")


class Host:
    """One machine. Crash it, bring it back, start and stop its speaker."""

    def __init__(self, run: Run, name: str, segment: Segment, number: int) -> None:
        self.run = run
        self.name = name
        self.namespace = run.namespace_name(name)
        run.add_namespace(name)
        self.v4, self.v6 = segment.addresses(number)
        self.cable = segment.connect(name, number, port=name)
        self.cables: list[Cable] = [self.cable]
        self.mac = mac_of(self.namespace, self.cable.device)
        self._own = set(bound(self.namespace, self.cable.device))
        self.run_folder = run.folder / "hosts" / name / "run"
        self._make_run_folder()
        self.speaker: Process | None = None

    # --- the machine ----------------------------------------------------------------------------

    def add_nic(self, segment: Segment, number: int, *, nic: str) -> Cable:
        """A further NIC on the same or another segment."""
        cable = segment.connect(self.name, number, port=f"{self.name}-{nic}", nic=nic)
        self.cables.append(cable)
        return cable

    def add_bridge(self, name: str = "br0") -> None:
        """Puts the first NIC into a bridge, which takes its addresses: as hosts with virtual machines do."""
        nic = self.cable.device
        script = [
            f"link add {name} type bridge stp_state 0 forward_delay 0",
            f"link set {name} address {self.mac}",
        ]
        own = sorted(self._own)
        script += [f"address del {cidr} dev {nic}" for cidr in own]
        script += [f"link set {nic} master {name}", f"link set {name} up"]
        script += [f"address add {cidr} dev {name}" for cidr in own]
        command("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(script) + "\n")

    def remove_bridge(self, name: str = "br0") -> None:
        """Undoes ``add_bridge``."""
        nic = self.cable.device
        script = [f"link del {name}", *(f"address add {cidr} dev {nic}" for cidr in sorted(self._own))]
        command("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(script) + "\n")

    def start(self, name: str, argv: Sequence[str]) -> Process:
        """An unconfined program on this host (keepalived, ucarp); its log is ``HOST-NAME.log``."""
        inside = in_namespace(netns_path(self.namespace), dying_with_parent(argv))
        return self.run.start(f"{self.name}-{name}", inside)

    def addresses(self, device: str | None = None) -> list[str]:
        """The addresses on the first NIC, and on macvlans of the speaker's (or on ``device``), that are not
        the host's own."""
        found = bound(self.namespace, device) if device else self._placed()
        return [cidr.partition("/")[0] for cidr in found if cidr not in self._own]

    def _placed(self) -> list[str]:
        nic = self.cable.device
        found = []
        for line in command("ip", "-n", self.namespace, "-o", "address", "show").splitlines():
            _, device, family, cidr, *_ = line.split()
            ours = device == nic or device.startswith(virtual_mac.PREFIX)
            if ours and family in ("inet", "inet6") and not cidr.startswith("fe80:"):
                found.append(cidr)
        return found

    def macvlans(self) -> list[str]:
        """The devices of virtual MACs that the speaker made."""
        shown = command("ip", "-n", self.namespace, "-o", "link", "show", "type", "macvlan").splitlines()
        names = [line.split()[1].partition("@")[0].rstrip(":") for line in shown]
        return [name for name in names if name.startswith(virtual_mac.PREFIX)]

    def holds(self, address: str) -> bool:
        return address in self.addresses()

    def ruleset(self) -> str:
        """The host's nftables rules; the rig itself has none there."""
        return command(*in_namespace(netns_path(self.namespace), ["nft", "list", "ruleset"])).strip()

    def lose_power(self) -> None:
        """All cables fall silent in one moment, links up; then everything that ran here is gone."""
        for cable in self.cables:
            cable.cut()
        self.kill_speaker()

    def boot(self) -> None:
        """The state of a machine that has just started: no foreign address, no rule, an empty /run."""
        if self.speaker is not None and self.speaker.running():
            raise RigError(f"{self.name}: boot with a running speaker")
        foreign = [c for c in bound(self.namespace, self.cable.device) if c not in self._own]
        lines = [f"address del {cidr} dev {self.cable.device}" for cidr in foreign]
        lines += [f"link del {device}" for device in self.macvlans()]
        if lines:
            command("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(lines) + "\n")
        command(*in_namespace(netns_path(self.namespace), ["nft", "flush", "ruleset"]))
        shutil.rmtree(self.run_folder)
        self._make_run_folder()
        for cable in self.cables:
            cable.mend()

    def _make_run_folder(self) -> None:
        (self.run_folder / SECRETS).mkdir(parents=True)
        (self.run_folder / "holdfast").mkdir()

    # --- its speaker ----------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> Path:
        """The speaker's, as seen from outside."""
        return self.run_folder / SECRETS / "kubeconfig"

    def start_speaker(self, capabilities: Sequence[str] = SPEAKER_CAPABILITIES) -> Process:
        """Starts ``holdfast-speaker`` as its pod would; its ``kubeconfig`` must be there."""
        if self.speaker is not None and self.speaker.running():
            raise RigError(f"{self.name}: its speaker already runs")
        inside = Confinement(
            netns=netns_path(self.namespace),
            run_folder=self.run_folder,
            hostname=self.name,
            capabilities=tuple(capabilities),
        )
        argv = inside.argv([str(BIN / "holdfast-speaker"), "--node", self.name])
        env = program_environment() | {"NODE_NAME": self.name}
        self.speaker = self.run.start(f"speaker-{self.name}", argv, env=env)
        return self.speaker

    def running_speaker(self) -> Process:
        if self.speaker is None or not self.speaker.running():
            raise RigError(f"{self.name}: its speaker does not run\n{self.speaker_log()}")
        return self.speaker

    def is_up(self) -> bool:
        """Whether its speaker is past its imports and serves its metrics: it opens its sockets next."""
        with socket_in(netns_path(self.namespace), socket.AF_INET, socket.SOCK_STREAM) as sock:
            return sock.connect_ex(METRICS) == 0

    def kill_speaker(self) -> None:
        """SIGKILL; no error when it does not run."""
        if self.speaker is not None:
            self.speaker.kill()

    def stop_speaker(self) -> int:
        """SIGTERM, and its exit code."""
        return self.running_speaker().terminate()

    def pause_speaker(self) -> None:
        self.running_speaker().signal(signal.SIGSTOP)

    def resume_speaker(self) -> None:
        self.running_speaker().signal(signal.SIGCONT)

    def speaker_log(self) -> str:
        return self.speaker.tail() if self.speaker is not None else "(never started)"


def program_environment() -> dict[str, str]:
    """What a pod of ours would have in its environment."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "KUBECONFIG": f"/run/{SECRETS}/kubeconfig",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def places(hosts: Sequence[Host], address: str) -> list[str]:
    """Every NIC of these hosts that has the address: ``HOST/NIC``."""
    found = []
    for host in hosts:
        for line in command("ip", "-n", host.namespace, "-o", "address", "show").splitlines():
            fields = line.split()
            if fields[3].partition("/")[0] == address:
                found.append(f"{host.name}/{fields[1]}")
    return found
