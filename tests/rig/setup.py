# SPDX-License-Identifier: Apache-2.0
"""``make setup``: makes a fresh Debian 12 (or later) ready; says first what it will do, is quick when done.

Standard library only, and readable by Python 3.7 and later, so that one older than we need is told so
instead of failing on syntax. Run it as a script or as ``python -m tests.rig.setup``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMP = VENV / ".holdfast-setup"
OLDEST_PYTHON = (3, 11)
UV = "uv>=0.9,<1"
# program -> Debian package
PROGRAMS = {
    "make": "make",
    "git": "git",
    "ip": "iproute2",
    "nft": "nftables",
    "ping": "iputils-ping",
    "sysctl": "procps",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "keepalived": "keepalived",
    "ucarp": "ucarp",
    "dbus-daemon": "dbus",
    "networkctl": "systemd",
    "NetworkManager": "network-manager",
}
# Debian package -> services; installed for the tests, never to run on this machine by itself
SERVICES = {
    "keepalived": ("keepalived",),
    "network-manager": ("NetworkManager", "NetworkManager-dispatcher", "NetworkManager-wait-online"),
}
POLICY = Path("/usr/sbin/policy-rc.d")


class SetupError(Exception):
    """Something to be put right by hand; the message says how."""


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Exit code 0 when everything is in place."""
    sys.path[:] = [str(ROOT), *(p for p in sys.path if p != str(Path(__file__).parent))]
    try:
        prepare()
    except subprocess.CalledProcessError as error:
        refusal = f"{' '.join(map(str, error.cmd))} failed with exit code {error.returncode}; see above"
    except (SetupError, RuntimeError) as error:
        refusal = str(error)
    except KeyboardInterrupt:
        say("Stopped; run it again to go on.")
        return 130
    else:
        return 0
    print(f"holdfast setup: {refusal}", file=sys.stderr, flush=True)
    return 1


def prepare() -> None:
    """Finds out what is missing, says what will be done, and does it."""
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"python3 is {have}: install Python 3.11 or later, or say make PYTHON=python3.11")
    from tests.rig import binaries  # only a Python that is new enough can read it

    if os.geteuid() != 0:
        raise SetupError("not root: network namespaces and apt-get need it; run make as root")
    packages = missing_packages()
    building = binaries.needs_build()
    if building:
        binaries.check_go()
    fresh = STAMP.is_file() and STAMP.read_text() == stamp()
    uv = binaries.cache_folder() / "uv"
    if packages or building or not fresh:
        say("This machine is not ready for Holdfast's rig yet. I will now:")
    if packages:
        say(f"  - install by apt-get: {', '.join(packages)} (no service of theirs is started)")
    if not fresh:
        say(f"  - fetch uv from PyPI into {uv}, and with it fill {VENV} from uv.lock")
    if building:
        say(f"  - build the control plane from Go modules into {binaries.build_folder()}: 7 minutes, once")
    if packages:
        install(packages)
    if not fresh:
        make_venv(uv)
    binaries.find(say)


def missing_packages() -> list[str]:
    """The Debian packages of what is not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = {package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None}
    if any(importlib.util.find_spec(module) is None for module in ("ensurepip", "venv")):
        if not sys.executable.startswith("/usr/bin/"):
            raise SetupError(f"{sys.executable} has no venv or no ensurepip: use another, make PYTHON=...")
        found.add("python3-venv")
    return sorted(found)


def install(packages: list[str]) -> None:
    """apt-get install, with every service kept from starting."""
    if shutil.which("apt-get") is None:
        raise SetupError(f"no apt-get here: install these yourself: {', '.join(packages)}")
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101  # holdfast setup: start nothing\n")
        POLICY.chmod(0o755)
    try:
        if subprocess.run(
            ["apt-get", "-q", "update"], check=False, env=env, stdout=subprocess.DEVNULL
        ).returncode:
            say("apt-get update failed; trying with the lists that are here.")
        subprocess.run(
            ["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages], env=env, check=True
        )
    finally:
        if ours:
            POLICY.unlink()
    if shutil.which("systemctl"):
        for service in (s for package in packages for s in SERVICES.get(package, ())):
            subprocess.run(["systemctl", "disable", "-q", service], check=False, stderr=subprocess.DEVNULL)
    left = missing_packages()
    if left:
        raise SetupError(f"still missing after apt-get: {', '.join(left)}")


def stamp() -> str:
    """What the virtual environment depends on: the lock, our own metadata, the Python, the place."""
    digest = hashlib.sha256()
    for name in ("uv.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version} {sys.base_prefix} {ROOT}".encode())
    return digest.hexdigest()


def make_venv(folder: Path) -> None:
    """``.venv`` exactly as uv.lock says, with all extras and groups, compiled: the rig shows it read-only."""
    uv = folder / "bin" / "uv"
    if not runs(uv):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", UV], check=True)
    env = dict(os.environ, UV_PROJECT_ENVIRONMENT=str(VENV), UV_PYTHON_DOWNLOADS="never")
    env.pop("VIRTUAL_ENV", None)
    argv = [str(uv), "sync", "--quiet", "--frozen", "--all-extras", "--all-groups", "--compile-bytecode"]
    base = getattr(sys, "_base_executable", None) or sys.executable
    subprocess.run([*argv, "--python", base], cwd=str(ROOT), env=env, check=True)
    STAMP.write_text(stamp())


def runs(program: Path) -> bool:
    """Whether it is there and can be executed."""
    try:
        return subprocess.run([str(program), "--version"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
