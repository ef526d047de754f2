# SPDX-License-Identifier: Apache-2.0
"""The peers that Debian ships, on the rig's hosts: keepalived and ucarp, each in its usual clothes.

Neither preempts unless told so, as Holdfast by default: a host that comes back stays standby.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.rig.hosts import Host
from tests.rig.process import Process
from tests.rig.run import RigError


def require(program: str) -> str:
    """The program's path; a missing one is named with its remedy."""
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise RigError(f"{program} is not installed: apt-get install {program}")
    return found


@dataclass(frozen=True, slots=True)
class Instance:
    """One virtual router as keepalived is told of it. ``interval_ms`` None: its default, 1 s.

    The family is that of the addresses. IPv6 lists the link-local address of RFC 9568 7.3 first, as our
    adverts do: keepalived up to 2.2.7 drops adverts that list other addresses than its own.
    """

    virtual_router_id: int
    priority: int
    addresses: tuple[str, ...]
    interval_ms: int | None = 100
    preempt: bool = False

    def configuration(self, device: str) -> str:
        six = ":" in self.addresses[0]
        bound = [f"{address}/{128 if six else 32}" for address in self.addresses]
        if six:
            bound.insert(0, f"fe80::200:5eff:fe00:{0x200 + self.virtual_router_id:x}/128")
        settings = [
            "state BACKUP",
            "" if self.preempt else "nopreempt",
            f"interface {device}",
            f"virtual_router_id {self.virtual_router_id}",
            f"priority {self.priority}",
            f"advert_int {self.interval_ms / 1000:g}" if self.interval_ms else "",
            "virtual_ipaddress {",
            *(f"  {cidr}" for cidr in bound),
            "}",
        ]
        body = "".join(f"  {setting}\n" for setting in settings if setting)
        return f"vrrp_instance rig{self.virtual_router_id} {{\n{body}}}\n"


def start_keepalived(host: Host, *instances: Instance) -> Process:
    """keepalived, VRRPv3, with these virtual routers on the host's first NIC."""
    folder = _folder(host, "keepalived")
    configuration = folder / "keepalived.conf"
    defaults = "global_defs {\n  vrrp_version 3\n  router_id rig\n}\n"
    each = [instance.configuration(host.cable.device) for instance in instances]
    configuration.write_text("".join((defaults, *each)))
    argv = [require("keepalived"), "--vrrp", "--dont-fork", "--log-console", "--log-detail"]
    argv += ["--use-file", str(configuration)]
    argv += ["--pid", str(folder / "pid"), "--vrrp_pid", str(folder / "vrrp.pid")]
    return host.start("keepalived", argv)


@dataclass(frozen=True, slots=True)
class Keepalived:
    """keepalived with one virtual router. ``interval_ms`` None: its default, 1 s."""

    address: str
    interval_ms: int | None = None

    @property
    def label(self) -> str:
        return "keepalived, " + (f"{self.interval_ms} ms" if self.interval_ms else "its default (1 s)")

    @property
    def settle_seconds(self) -> float:
        """From its start until it has heard the others and is a steady Backup."""
        return 1.5 + 4 * (self.interval_ms or 1000) / 1000

    def start(self, host: Host, rank: int) -> None:
        start_keepalived(host, Instance(77, 200 - 50 * rank, (self.address,), self.interval_ms))


@dataclass(frozen=True, slots=True)
class Ucarp:
    """ucarp with its default, a packet each second; its scripts bind and release, as its README shows."""

    address: str

    @property
    def label(self) -> str:
        return "ucarp, its default (1 s)"

    @property
    def settle_seconds(self) -> float:
        return 6.0

    def start(self, host: Host, rank: int) -> None:
        folder = _folder(host, "ucarp")
        for name, verb in (("up", "add"), ("down", "del")):
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec ip address {verb} {self.address}/32 dev "$1"\n')
            script.chmod(0o755)
        argv = [require("ucarp"), f"--interface={host.cable.device}", f"--srcip={host.v4}", "--vhid=77"]
        argv += ["--pass=rig", f"--addr={self.address}", f"--advskew={10 * rank}", "--shutdown"]
        argv += [f"--upscript={folder / 'up'}", f"--downscript={folder / 'down'}"]
        host.start("ucarp", argv)


def _folder(host: Host, name: str) -> Path:
    """An empty folder: a pid file that a crash left would keep the next start from starting."""
    folder = host.run.folder / "hosts" / host.name / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
