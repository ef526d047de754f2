# SPDX-License-Identifier: Apache-2.0
"""Where the fence is tried.

    a (eth0, eth1) --- switch --- b (eth0)

The addresses are bound on a's eth0, or on a macvlan of it with a virtual MAC; b asks for them by frames of
its own and counts what comes back. A tap on the switch sees what left a's eth0.
"""

import contextlib
import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from holdfast_speaker import virtual_mac
from holdfast_speaker.fence.kernel import KernelFence
from holdfast_speaker.vrrp.advert import Advert, Family, build, listing
from tests.netns.small_net import Net

V4, V6 = "192.0.2.10", "2001:db8::10"
OWN, B4, B6 = "192.0.2.1", "192.0.2.2", "2001:db8::2"
ALL = frozenset(("arp", "nd", "ping4", "ping6"))
NOBODY: frozenset[str] = frozenset()
LEASE_US, LONG_US = 100_000, 20_000_000
SLACK_S = 0.06  # of a busy machine, for one answer
_SO_MARK = 36
_SO_RCVBUFFORCE = 33
A_MAC, A_SECOND_MAC, B_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:1a", "02:00:00:00:00:0b"
BROADCAST = "ff:ff:ff:ff:ff:ff"
V_MAC, W_MAC = "02:00:00:00:aa:01", "02:00:00:00:aa:02"
MACS = {V4: V_MAC, V6: V_MAC}
_SO_ATTACH_FILTER = 26
_OUTGOING = 4


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Field:
    """The network, and the fence on host a."""

    def __init__(self, net: Net) -> None:
        self.net = net
        net.add("switch")
        net.ip("switch", "link add br0 type bridge mcast_snooping 0", "link set br0 up")
        self.add_host("a", {"eth0": A_MAC, "eth1": A_SECOND_MAC})
        self.add_host("b", {"eth0": B_MAC})
        net.ip(
            "a",
            f"addr add {OWN}/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0 nodad",
            "addr add 192.0.2.3/24 dev eth1",
            f"addr add {V4}/32 dev eth0",
            f"addr add {V6}/128 dev eth0 nodad",
            *self._beyond("eth0"),
        )
        net.ip("b", f"addr add {B4}/24 dev eth0", f"addr add {B6}/64 dev eth0 nodad")
        with net.inside("a"):
            self.home = socket.if_nametoindex("eth0")
            self.second = socket.if_nametoindex("eth1")
        self.both = frozenset((self.home, self.second))
        with net.inside("b"):
            self.ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            self.ear.bind(("eth0", 3))
        self.mouths: list[socket.socket] = []

    def add_host(self, name: str, nics: dict[str, str]) -> None:
        """On the switch, with these NICs and MACs."""
        self.net.add(name)
        for nic, mac in nics.items():
            self.plug(name, nic, mac)

    def plug(self, host: str, nic: str, mac: str) -> None:
        port, there = f"{host}-{nic}", self.net.full(host)
        self.net.ip(
            "switch",
            f"link add {port} type veth peer name {nic} address {mac} netns {there}",
            f"link set {port} up master br0",
        )
        self.net.ip(host, f"link set {nic} up")

    def reach_b(self, nic: str) -> None:
        """Answers need no question of a's own first, which the fence may drop."""
        self.net.ip("a", *self._beyond(nic))

    def _beyond(self, nic: str) -> list[str]:
        return [f"neigh replace {other} dev {nic} lladdr {B_MAC} nud permanent" for other in (B4, B6)]

    def close(self) -> None:
        for sock in (self.ear, *self.mouths):
            sock.close()

    # --- host a ---------------------------------------------------------------------------------

    def mouth(self, mark: int = 0, host: str = "a", nic: str = "eth0") -> socket.socket:
        with self.net.inside(host):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind((nic, 0))
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        self.mouths.append(sock)
        return sock

    def fence(
        self, lease_us: int = LEASE_US, macs: Mapping[str, str] = {}, own: str | None = None
    ) -> KernelFence:
        """On both NICs; router 7 with the two addresses, not taken yet."""
        fence = KernelFence()
        assert fence.fault == ""
        fence.open(())
        fence.cover(self.both)
        fence.guard(7, self.home, lease_us, (V4, V6), macs, own)
        return fence

    # --- virtual MACs ---------------------------------------------------------------------------

    def plant(self, mac: str, *addresses: str, parent: str = "eth0") -> str:
        """A macvlan with these addresses, as the speaker would make it; they are nowhere else any more."""
        device = virtual_mac.device(mac)
        self.net.ip(
            "a",
            f"link add {device} link {parent} address {mac} type macvlan mode private",
            f"link set {device} addrgenmode none",
        )
        for key in ("arp_ignore=1", "rp_filter=2"):
            self.net.run("a", "sysctl", "-qw", f"net.ipv4.conf.{device}.{key}")
        self.net.ip("a", f"link set {device} up")
        for address in addresses:
            prefix = "128 dev {} nodad" if ":" in address else "32 dev {}"
            with contextlib.suppress(AssertionError):
                self.net.ip("a", f"addr del {address}/{prefix.split()[0]} dev eth0")
            self.net.ip("a", f"addr add {address}/{prefix.format(device)}")
        return device

    def tap(self, mac: str | None = None, port: str = "a-eth0") -> "Tap":
        """Hears what comes into the switch there, from that MAC or from all, from now on."""
        with self.net.inside("switch"):
            made = Tap(port, mac)
        self.mouths.append(made.sock)
        return made

    # --- host b ---------------------------------------------------------------------------------

    def questions(self, v4: str = V4, v6: str = V6) -> dict[str, bytes]:
        b, a = B_MAC, A_MAC
        host_bits = ip_address(v6).packed[13:]
        group = "33:33:ff:" + host_bits.hex(":")
        snm = "ff02::1:ff" + host_bits.hex()[:2] + ":" + host_bits.hex()[2:]
        return {
            "arp": bytes(Ether(src=b, dst=BROADCAST) / ARP(op=1, hwsrc=b, psrc=B4, pdst=v4)),
            "nd": bytes(
                Ether(src=b, dst=group)
                / IPv6(src=B6, dst=snm, hlim=255)
                / ICMPv6ND_NS(tgt=v6)
                / ICMPv6NDOptSrcLLAddr(lladdr=b)
            ),
            "ping4": bytes(Ether(src=b, dst=a) / IP(src=B4, dst=v4) / ICMP(id=7)),
            "ping6": bytes(Ether(src=b, dst=a) / IPv6(src=B6, dst=v6) / ICMPv6EchoRequest(id=7)),
        }

    def asked(self, seconds: float = SLACK_S, enough: frozenset[str] = ALL) -> frozenset[str]:
        """Which questions for the addresses are answered by a, when all are asked now."""
        self.heard(0)
        with self.net.inside("b"):
            for frame in self.questions().values():
                self.ear.send(frame)
        answers: set[str] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not enough <= answers:
            answers |= {answer for frame in self.heard(0.005) if (answer := answer_in(frame))}
        return frozenset(answers)

    def heard(self, seconds: float = 0.03) -> list[bytes]:
        """What arrives at b within that time, but for its own frames."""
        frames: list[bytes] = []
        deadline = time.monotonic() + seconds
        while True:
            try:
                frame, (_, _, kind, _, _) = self.ear.recvfrom(2048, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return frames
                time.sleep(0.001)
                continue
            if kind != _OUTGOING:
                frames.append(frame)


class Tap:
    def __init__(self, port: str, mac: str | None) -> None:
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        if mac is not None:
            high, low = struct.unpack("!IH", mac_bytes(mac))
            program = [(0x20, 0, 0, 6), (0x15, 0, 3, high), (0x28, 0, 0, 10), (0x15, 0, 1, low)]
            code = b"".join(struct.pack("=HBBI", *each) for each in [*program, (6, 0, 0, 2048), (6, 0, 0, 0)])
            buffer = ctypes.create_string_buffer(code)
            fprog = struct.pack("HL", len(code) // 8, ctypes.addressof(buffer))
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        self.sock.bind((port, 3))

    def frames(self, seconds: float = 0.03) -> list[bytes]:
        """What came since the last time, and within these seconds."""
        time.sleep(seconds)
        frames: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, _, _) = self.sock.recvfrom(2048, socket.MSG_DONTWAIT)
                frames += [frame] if kind != _OUTGOING else []
        return frames


def answer_in(frame: bytes) -> str:
    """The kind of answer for one of the two addresses that this frame is, or nothing."""
    v4, v6 = ip_address(V4).packed, ip_address(V6).packed
    if frame[12:14] == b"\x08\x06":
        return "arp" if frame[20:22] == b"\0\2" and frame[28:32] == v4 else ""
    if frame[12:14] == b"\x08\x00":
        return "ping4" if frame[26:30] == v4 and frame[23] == 1 and frame[34] == 0 else ""
    if frame[12:14] == b"\x86\xdd" and frame[20] == 58:
        if frame[54] == 136 and frame[62:78] == v6:
            return "nd"
        return "ping6" if frame[54] == 129 and frame[22:38] == v6 else ""
    return ""


@contextlib.contextmanager
def field_of(net: Net) -> Iterator[Field]:
    """Inside of host a."""
    made = Field(net)
    try:
        with net.inside("a"):
            yield made
    finally:
        made.close()


def killed(fence: KernelFence) -> None:
    """Its process is gone, its table is not."""
    fence._kernel.close()
    fence._orders.close()


def answering(field: Field) -> set[str]:
    """The NICs of a that answer ARP for the address."""
    field.heard(0)
    field.ear.send(field.questions()["arp"])
    names = {mac_bytes(A_MAC): "eth0", mac_bytes(A_SECOND_MAC): "eth1"}
    return {names[frame[6:12]] for frame in field.heard(SLACK_S) if answer_in(frame) == "arp"}


def advert(family: Family = 4, virtual_router_id: int = 7, mac: str = "02:00:00:00:00:0a") -> bytes:
    own = ip_address(OWN if family == 4 else "fe80::a").packed
    listed = listing(family, virtual_router_id, [ip_address(V4 if family == 4 else V6).packed], 1500)
    return build(Advert(family, own, virtual_router_id, 250, 100_000, listed), mac_bytes(mac))


def patched(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


@contextlib.contextmanager
def sending(sock: socket.socket, frame: bytes, every_s: float) -> Iterator[None]:
    over = threading.Event()

    def go() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                sock.send(frame)
            over.wait(every_s)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_until(look: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def dead(fence: KernelFence) -> None:
    wait_until(lambda: not fence.alive(7))
