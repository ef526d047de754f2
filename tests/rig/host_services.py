# SPDX-License-Identifier: Apache-2.0
"""The real systemd-networkd and NetworkManager as services of a rig's host: what else configures its NIC.

Each runs in the host's network namespace with /run, /etc and /var/lib of the host's own, beside a private
D-Bus, and takes the machine for a container without udev, since /sys is read-only. Both get the host's own
addresses as their configuration, as they would have at boot.
"""

import itertools
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from tests.rig.hosts import Host
from tests.rig.network import bound, netns_path
from tests.rig.process import Process
from tests.rig.run import RigError, command, dying_with_parent, in_namespace

_SOCKET: Final = "run/dbus/system_bus_socket"
_READY_SECONDS: Final = 20.0
_numbers = itertools.count(1)
_BUS: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_type="method_return"/>
    <allow send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"""


class _Service:
    """One program that configures a host's NIC, with its bus. ``folder`` holds what it takes for its disk."""

    name = ""
    program = ""
    places: Mapping[str, str] = {}  # its folder -> where it expects it

    def __init__(self, host: Host) -> None:
        if shutil.which(self.program) is None:
            raise RigError(f"{self.program} is not installed: run `make setup` as root")
        self.host = host
        self.folder = host.run.folder / self.name / f"{host.name}-{next(_numbers)}"
        for place in ("run/dbus", *self.places):
            (self.folder / place).mkdir(parents=True)
        (self.folder / "run/dbus/system.conf").write_text(_BUS)
        nic = host.cable.device
        self.own = [c for c in bound(host.namespace, nic) if c.partition("/")[0] not in host.addresses()]
        self._bus: Process | None = None
        self._process: Process | None = None

    def __enter__(self) -> Self:
        bus = ["dbus-daemon", "--config-file=/run/dbus/system.conf", "--nofork", "--nopidfile"]
        self._bus = self._launch("bus", bus)
        self._until("its bus", (self.folder / _SOCKET).exists)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._bus is not None:
            self._bus.kill()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """SIGTERM, as systemd does."""
        if self._process is not None and self._process.running():
            self._process.terminate()

    def restart(self) -> None:
        """As ``systemctl restart`` does: stopped, started, ready."""
        self.stop()
        self.start()

    def command(self, *argv: str) -> str:
        """Runs its client beside it."""
        return command(*self._inside(argv))

    def log(self) -> str:
        """The last lines it wrote."""
        return self._process.tail() if self._process is not None else ""

    def _launch(self, name: str, argv: Sequence[str]) -> Process:
        full = f"{self.host.name}-{self.name}-{name}"
        return self.host.run.start(full, dying_with_parent(self._inside(argv)))

    def _inside(self, argv: Sequence[str]) -> list[str]:
        binds = {"run": "/run", **self.places}
        lines = ["set -e"]
        lines += [f"mount --bind {shlex.quote(str(self.folder / f))} {to}" for f, to in binds.items()]
        lines += ["mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys", f"exec {shlex.join(argv)}"]
        inside = ["unshare", "--mount", "sh", "-c", "\n".join(lines)]
        return in_namespace(netns_path(self.host.namespace), inside)

    def _until(self, what: str, look: Callable[[], object]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not look():
            if time.monotonic() > deadline:
                raise RigError(f"{self.host.name}: {self.name} is not ready ({what}):\n{self.log()}")
            time.sleep(0.02)


class Networkd(_Service):
    """systemd-networkd. ``keep``: with ``KeepConfiguration=yes``, which Holdfast's documents ask for."""

    name = "networkd"
    program = "/lib/systemd/systemd-networkd"
    places: Mapping[str, str] = {"etc": "/etc/systemd/network"}

    def __init__(self, host: Host, *, keep: bool = False) -> None:
        super().__init__(host)
        state = self.folder / "run/systemd/netif"
        state.mkdir(parents=True)
        shutil.chown(state, "systemd-network", "systemd-network")  # it runs as that
        self._keep = keep
        self.configure()

    def configure(self, extra: str = "") -> None:
        """Writes its file for the NIC; ``reload`` or a restart makes it count."""
        lines = ["[Match]", f"Name={self.host.cable.device}", "[Network]"]
        lines += [f"Address={cidr}" for cidr in self.own]
        lines += ["KeepConfiguration=yes"] if self._keep else []
        lines += ["LinkLocalAddressing=ipv6", "IPv6AcceptRA=no", extra]
        (self.folder / "etc/nic.network").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self._process = self._launch("daemon", ["env", "SYSTEMD_LOG_TARGET=console", self.program])
        self._until("configured", lambda: "configured" in self.state())

    def state(self) -> str:
        """What it says of the NIC, one line."""
        try:
            return self.command("networkctl", "--no-legend", "--no-pager", "list", self.host.cable.device)
        except RigError:
            return ""

    def reload(self) -> None:
        """Reads its files again; a NIC whose file changed is configured anew."""
        self.command("networkctl", "reload")

    def reconfigure(self) -> None:
        """Configures the NIC from nothing."""
        self.command("networkctl", "reconfigure", self.host.cable.device)


class NetworkManager(_Service):
    """NetworkManager, with one profile for the NIC."""

    name = "nm"
    program = "NetworkManager"
    places: Mapping[str, str] = {"etc": "/etc/NetworkManager", "lib": "/var/lib/NetworkManager"}

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        (self.folder / "run/NetworkManager").mkdir()
        (self.folder / "etc/NetworkManager.conf").write_text(
            "[main]\nplugins=keyfile\nauth-polkit=false\ndhcp=internal\nrc-manager=unmanaged\n"
            "[logging]\nlevel=INFO\n"
        )
        (self.folder / "etc/system-connections").mkdir()
        self.configure()

    def configure(self, mtu: int = 0) -> None:
        v4 = [cidr for cidr in self.own if ":" not in cidr]
        v6 = [cidr for cidr in self.own if ":" in cidr]
        lines = ["[connection]", "id=nic", "uuid=6fae2b1e-0b3c-4a0e-9a39-2b1fbb0f5f01", "type=ethernet"]
        lines += [f"interface-name={self.host.cable.device}", "[ethernet]"]
        lines += [f"mtu={mtu}"] if mtu else []
        lines += ["[ipv4]", "method=manual", *(f"address{i}={a}" for i, a in enumerate(v4, 1))]
        lines += ["[ipv6]", "method=manual", "addr-gen-mode=eui64"]
        lines += [f"address{i}={a}" for i, a in enumerate(v6, 1)]
        profile = self.folder / "etc/system-connections/nic.nmconnection"
        profile.write_text("\n".join(lines) + "\n")
        profile.chmod(0o600)

    def start(self) -> None:
        """Ready once the NIC is its own: what was there already it would only watch."""
        self._process = self._launch("daemon", [self.program, "--debug"])  # debug: its log to stderr
        self._until("started", lambda: "100" in self.state())
        if self.state() != "100 (connected)":
            self.up()

    def state(self) -> str:
        """What it says of the NIC, one line."""
        try:
            argv = ["--terse", "--get-values", "GENERAL.STATE", "device", "show", self.host.cable.device]
            return self.command("nmcli", *argv).strip()
        except RigError:
            return ""

    def up(self) -> None:
        """Configures the NIC by the profile, anew where it already is."""
        self.command("nmcli", "connection", "up", "nic")

    def down(self) -> None:
        """Takes the configuration off the NIC."""
        self.command("nmcli", "connection", "down", "nic")

    def reapply(self) -> None:
        """The profile's changes, on the NIC as it is."""
        self.command("nmcli", "connection", "reload")
        self.command("nmcli", "device", "reapply", self.host.cable.device)
