# SPDX-License-Identifier: Apache-2.0
"""A whole cluster: control plane, operators, hosts with speakers, a client; and the verbs of its stories."""

import compileall
import shutil
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeVar

from holdfast_api.names import OPERATOR_LEASE, OPERATOR_NAMESPACE
from tests.rig.api import Api, Object, condition
from tests.rig.binaries import Say, say_on_stderr
from tests.rig.confinement import NOBODY, ROOT, Confinement
from tests.rig.controlplane import ControlPlane
from tests.rig.hosts import BIN, SECRETS, SPEAKER_CAPABILITIES, Host, program_environment
from tests.rig.network import V4, V6, Segment, neighbour, netns_path, wait_for_dad
from tests.rig.probe import Probe
from tests.rig.process import Process
from tests.rig.run import RigError, Run

CONTROL_NUMBER: Final = 250
CLIENT_NUMBER: Final = 251
FIRST_HOST_NUMBER: Final = 11
MAX_HOSTS: Final = 9
LEASE_SECONDS: Final = 25
LISTEN_SECONDS: Final = 4.6  # it listens for 4 s before it may use a VRID, and then says so
LEASE_NAMESPACE: Final = "holdfast-speakers"
WAIT_SECONDS: Final = 30.0  # for what is only waited for, not promised within a time
MOST_LOSSES: Final = 2  # that an operator may know of when a story begins
_POLL_SECONDS: Final = 0.02

T = TypeVar("T")


class Cluster:
    """``with Cluster(hosts=3) as cluster:`` all runs and has reported; at the end nothing is left.

    Hosts are ``h1`` to ``hN`` (192.0.2.11 and so on, fd00:192:0:2::b and so on); operators are ``op1``
    and so on, and run in the control plane's namespace (192.0.2.250); the client is 192.0.2.251.
    """

    def __init__(
        self,
        *,
        hosts: int = 3,
        operators: int = 1,
        v4: IPv4Network = V4,
        v6: IPv6Network = V6,
        capabilities: Iterable[str] = SPEAKER_CAPABILITIES,
        say: Say = say_on_stderr,
    ) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise ValueError(f"hosts: 1 to {MAX_HOSTS}, not {hosts}")
        self.say = say
        self.hosts: dict[str, Host] = {}
        self.operators: dict[str, Process] = {}
        self._speaker_started: dict[str, float] = {}
        self._losses = 0
        self._host_names = [f"h{i}" for i in range(1, hosts + 1)]
        self._operator_names = [f"op{i}" for i in range(1, operators + 1)]
        self._capabilities = tuple(capabilities)
        self._subnets = (v4, v6)

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> "Cluster":
        self.run = Run()
        try:
            self._build()
        except BaseException:
            self.run.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.control_plane.close()
        self.run.close()

    def _build(self) -> None:
        v4, v6 = self._subnets
        self.say(f"[{self.run.id}] A switch, a control plane, a client and {len(self._host_names)} hosts.")
        for name in (
            "operator",
            "speaker",
            "crds",
        ):  # the programs see a read-only disk: no time to compile there
            compileall.compile_dir(str(ROOT / name), quiet=2)
        self.segment = Segment(self.run, v4=v4, v6=v6)
        self.control = self.run.add_namespace("control")
        self.segment.connect("control", CONTROL_NUMBER, port="control", careful=False)
        self.client = self.run.add_namespace("client")
        self.segment.connect("client", CLIENT_NUMBER, port="client", careful=False)
        for number, name in enumerate(self._host_names, FIRST_HOST_NUMBER):
            self.hosts[name] = Host(self.run, name, self.segment, number)
        address = self.segment.addresses(CONTROL_NUMBER)[0]
        self.control_plane = ControlPlane(
            self.run, netns=self.control, address=address, say=self.say
        ).launch()
        version = self.api.request("GET", "/version")["gitVersion"]
        self.say(f"[{self.run.id}] Kubernetes {version}; CRDs, rights and admission policy are in force.")
        wait_for_dad([h.namespace for h in self.hosts.values()])
        for host in self.hosts.values():
            self.control_plane.add_node(host.name, host.v4, host.v6)
        for name in self._operator_names:
            self.start_operator(name)
        for host in self.hosts.values():
            self.start_speaker(host.name)
        self.wait_speakers()
        self.say(f"[{self.run.id}] Operator and speakers run; every speaker has reported.")

    def reset(self) -> None:
        """As new for the next story: all up, no faults, no VirtualIPs, nothing bound."""
        self.control_plane.thaw()
        self.control_plane.start()
        for host in self.hosts.values():
            for cable in host.cables:
                cable.mend()
            if host.speaker is not None and host.speaker.running():
                host.resume_speaker()
        self._renew_operators()
        for kind in ("VirtualIP", "VirtualIPPool"):
            self.api.delete_all(kind)
        for host in self.hosts.values():
            if self.api.get("Node", host.name) is None:
                self.control_plane.add_node(host.name, host.v4, host.v6)
            self.renew_token(host.name)
            if host.speaker is None or not host.speaker.running():
                host.boot()
                self.start_speaker(host.name)
        self.wait_speakers()
        self.wait_until("an operator leads", self._is_led)
        self.wait_until("nothing bound and no router left", self._empty)

    def _renew_operators(self) -> None:
        """One that saw a host fail three times takes it for unsteady, for ten minutes: a story gets a new one
        before that."""
        losses = sum(_takeovers_told(host) for host in self.hosts.values())
        forgets = losses - self._losses >= MOST_LOSSES
        self._losses = losses if forgets else self._losses
        for name in self._operator_names:
            self.operators[name].resume()
            if forgets and self.operators[name].running():
                self.operators[name].terminate()
            if not self.operators[name].running():
                self.start_operator(name)

    def _is_led(self) -> bool:
        lease = self.api.get("Lease", OPERATOR_LEASE, OPERATOR_NAMESPACE) or {}
        return bool((lease.get("spec") or {}).get("holderIdentity"))

    def _empty(self) -> bool:
        bound = any(host.addresses() for host in self.hosts.values())
        return not bound and not self.api.items("VirtualRouter")

    # --- programs -------------------------------------------------------------------------------

    @property
    def api(self) -> Api:
        return self.control_plane.api

    def start_operator(self, name: str = "op1", *flags: str) -> Process:
        """Starts (again) an operator: nobody, no capability, read-only disk, token of its service account."""
        folder = self.run.folder / "operators" / name / "run"
        secrets = folder / SECRETS
        secrets.mkdir(parents=True, exist_ok=True)
        self.control_plane.operator_kubeconfig(secrets / "kubeconfig", rotating=True)
        for path in secrets.iterdir():
            shutil.chown(path, NOBODY, NOBODY)
        inside = Confinement(netns=self.control, run_folder=folder, hostname=name, uid=NOBODY)
        argv = inside.argv([str(BIN / "holdfast-operator"), *flags])
        env = program_environment() | {"POD_NAME": name}
        self.operators[name] = self.run.start(f"operator-{name}", argv, env=env)
        return self.operators[name]

    def renew_token(self, host: str) -> None:
        """A fresh token for the host's speaker, as the kubelet would write it."""
        self.control_plane.token_for(host, self.hosts[host].kubeconfig, rotating=True)

    def start_speaker(self, host: str) -> Process:
        if not self.hosts[host].kubeconfig.exists():
            self.renew_token(host)
        self._speaker_started[host] = time.monotonic()
        return self.hosts[host].start_speaker(self._capabilities)

    def restart_speaker(self, host: str) -> None:
        """SIGTERM, and start again."""
        self.hosts[host].stop_speaker()
        self.start_speaker(host)

    def wait_speakers(
        self, hosts: Iterable[str] | None = None, *, nic: str = "eth0", timeout_s: float = WAIT_SECONDS
    ) -> None:
        """Until these speakers (default: all that run) hold a Lease and may claim addresses."""
        running = [n for n, h in self.hosts.items() if h.speaker is not None and h.speaker.running()]
        for name in list(hosts or running):
            self.wait_until(
                f"speaker of {name} has reported", partial(self._reported, name, nic), timeout_s=timeout_s
            )

    def _reported(self, name: str, nic: str) -> bool:
        self.hosts[name].running_speaker()
        status = (self.api.get("Speaker", name) or {}).get("status") or {}
        heard = {i["name"] for i in status.get("interfaces", []) if i.get("listened")}
        age_s = time.monotonic() - self._speaker_started[name]
        # Its last life may have reported the same: this one must have had the time, and renewed its Lease.
        return nic in heard and age_s > LISTEN_SECONDS and self._pulse_age_s(name) < min(age_s, LEASE_SECONDS)

    def _pulse_age_s(self, name: str) -> float:
        """How long ago the speaker renewed its Lease (all clocks here are one)."""
        renewed = ((self.api.get("Lease", name, LEASE_NAMESPACE) or {}).get("spec") or {}).get("renewTime")
        if renewed is None:
            return float("inf")
        return (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()

    # --- VirtualIPs -----------------------------------------------------------------------------

    def apply(self, text: str) -> list[Object]:
        """Server-side apply; returns when the API server has stored it."""
        return self.api.apply(text)

    def vip(self, name: str, namespace: str = "default") -> Object:
        """The VirtualIP; ``RigError`` when there is none."""
        found = self.api.get("VirtualIP", name, namespace)
        if found is None:
            raise RigError(f"no VirtualIP {namespace}/{name}")
        return found

    def leader(self, name: str) -> str | None:
        """Who should hold it: the plan."""
        leader: str | None = (self.vip(name).get("status") or {}).get("leader")
        return leader

    def active(self, name: str) -> list[str]:
        """Who was seen to hold it: the status."""
        return [holder["node"] for holder in (self.vip(name).get("status") or {}).get("active", [])]

    def holders(self, address: str) -> list[str]:
        """Who really has it bound: the kernels. Crashed hosts count, they don't know that they are dead."""
        return [name for name, host in self.hosts.items() if host.holds(address)]

    def wait_ready(self, name: str, *, timeout_s: float = WAIT_SECONDS) -> Object:
        """Until the VirtualIP is Ready, and what it looks like then."""

        def ready() -> Object | None:
            found = self.vip(name)
            return found if condition(found, "Ready").get("status") == "True" else None

        return self.wait_until(f"VirtualIP {name} is Ready", ready, timeout_s=timeout_s)

    def wait_active(self, name: str, node: str, *, timeout_s: float = WAIT_SECONDS) -> Object:
        """Until the status says that exactly this node holds it."""

        def seen() -> Object | None:
            return self.vip(name) if self.active(name) == [node] else None

        return self.wait_until(f"VirtualIP {name} is seen on {node} alone", seen, timeout_s=timeout_s)

    def wait_quiet(self, seconds: float = 1.5) -> None:
        """Until nothing was written of VirtualIPs, routers and speakers for so long: what follows from a
        change is."""
        seen: list[tuple[float, object]] = [(0.0, None)]

        def quiet() -> bool:
            now = [
                item["metadata"]["resourceVersion"]
                for kind in ("VirtualIP", "VirtualRouter", "Speaker")
                for item in self.api.items(kind)
            ]
            if now != seen[0][1]:
                seen[0] = time.monotonic(), now
            return time.monotonic() - seen[0][0] >= seconds

        self.wait_until(f"nothing written for {seconds:.1f} s", quiet)

    def probe(self, *addresses: str, rate_hz: int = 1000) -> Probe:
        """The client starts to ask these addresses."""
        return Probe(self.run, self.client, addresses, rate_hz=rate_hz)

    def neighbour(self, address: str) -> str:
        """The client's ARP or ND entry."""
        return neighbour(netns_path(self.run.namespace_name("client")).name, address)

    # --- events ---------------------------------------------------------------------------------

    def crash(self, host: str, *, silent: bool = True) -> float:
        """The host loses power; ``silent``: its link stays up. The moment, on the monotonic clock."""
        machine = self.hosts[host]
        moment = time.monotonic()
        if not silent:
            for cable in machine.cables:
                cable.unplug()
        machine.lose_power()
        return moment

    def restore(self, host: str) -> None:
        """The host boots, and its speaker starts."""
        self.hosts[host].boot()
        self.start_speaker(host)

    def cut_api(self, host: str) -> None:
        """This host alone can't reach the API server any more (undone by ``cable.mend``)."""
        address = self.segment.addresses(CONTROL_NUMBER)[0]
        self.hosts[host].cable.block_tcp(address, self.control_plane.port)

    # --- waiting and telling --------------------------------------------------------------------

    def wait_until(self, what: str, look: Callable[[], T | None], *, timeout_s: float = WAIT_SECONDS) -> T:
        """The first true answer of ``look``; when none comes in time, an error that shows the cluster."""
        deadline = time.monotonic() + timeout_s
        why = ""
        while time.monotonic() < deadline:
            try:
                found = look()
            except OSError as error:  # the API server is away, perhaps on purpose
                found, why = None, f" (last: {error})"
            if found:
                return found
            time.sleep(_POLL_SECONDS)
        raise RigError(f"not within {timeout_s:.0f} s: {what}{why}\n{self.describe()}")

    def describe(self) -> str:
        """All there is to know when something went wrong: objects, addresses, ends of logs."""
        parts = []
        try:
            for kind in ("VirtualIP", "VirtualRouter", "Speaker"):
                items = self.api.items(kind)[:5]
                parts += [f"{kind} {i['metadata']['name']}: {i.get('spec')} {i.get('status')}" for i in items]
        except (OSError, RuntimeError) as error:
            parts.append(f"the API server does not answer: {error}")
        for name, host in self.hosts.items():
            parts.append(
                f"{name}: bound {host.addresses()[:10]}; its speaker's log ends:\n{host.speaker_log()}"
            )
        for name, operator in self.operators.items():
            state = "runs" if operator.running() else f"ended with {operator.exit_code()}"
            parts.append(f"{name} {state}; its log ends:\n{operator.tail()}")
        return "\n".join(parts)


def _takeovers_told(host: Host) -> int:
    """How often the host's speakers have taken over from one that failed, or that let go."""
    text = host.speaker.log.read_text(errors="replace") if host.speaker is not None else ""
    return text.count("reason=ActiveSilent") + text.count("reason=ActiveResigned")
