# SPDX-License-Identifier: Apache-2.0
"""etcd, the Kubernetes control plane and kubectl: the user's own where they fit, else built from Go modules.

Standard library only: ``make setup`` runs this before there is a virtual environment.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# No module name: mypy would take the folder for controlplane.py.
SOURCE: Final = Path(__file__).parent / "control-plane"
NAMES: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
OLDEST_GO: Final = (1, 21)  # the first that fetches the toolchain a go.mod asks for
OLDEST_KUBECTL: Final = (1, 34)
PROGRESS_SECONDS: Final = 5.0

Say = Callable[[str], None]


class MissingToolError(RuntimeError):
    """Something this machine lacks, with the remedy in the message."""


@dataclass(frozen=True, slots=True)
class Binaries:
    etcd: Path
    apiserver: Path
    controller: Path
    kubectl: Path


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where the build is kept: outside the checkout, so that a fresh clone finds it again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "holdfast"


def build_folder() -> Path:
    digest = hashlib.sha256()
    for name in ("go.sum", "main.go"):
        digest.update((SOURCE / name).read_bytes())
    return cache_folder() / f"controlplane-{digest.hexdigest()[:16]}"


def kubernetes_version() -> str:
    """The version that go.mod asks for, such as ``v1.36.3``."""
    match = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{SOURCE}/go.mod requires no k8s.io/kubernetes")
    return match[1]


def go_version() -> tuple[int, int] | None:
    """Major and minor of the ``go`` in PATH, or None when there is none."""
    try:
        answer = subprocess.run(["go", "version"], capture_output=True, text=True, check=True, cwd="/").stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"go(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else None


def check_go() -> None:
    """``MissingToolError``, with the remedy, when there is no Go compiler that will do."""
    version = go_version()
    if version is None:
        raise MissingToolError(
            "go is not in PATH, and builds the test control plane: install Go 1.26 (https://go.dev/dl/), or "
            "1.21 and later, which fetches 1.26 by itself; or set KUBEBUILDER_ASSETS to a folder with etcd, "
            "kube-apiserver, kube-controller-manager and kubectl"
        )
    if version < OLDEST_GO:
        raise MissingToolError(
            f"go {version[0]}.{version[1]} is too old: install Go 1.26 (https://go.dev/dl/), or 1.21 and "
            "later, which fetches the toolchain that go.mod names"
        )


def assets_folder() -> Path | None:
    """``KUBEBUILDER_ASSETS``, when set: a folder with etcd, kube-apiserver and perhaps more."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    if not value:
        return None
    folder = Path(value)
    missing = [name for name in ("etcd", "kube-apiserver") if not os.access(folder / name, os.X_OK)]
    if missing:
        raise MissingToolError(
            f"KUBEBUILDER_ASSETS={value} has no executable {' and no '.join(missing)}: "
            f"unset it, or fill it with `setup-envtest use 1.36.x`"
        )
    return folder


def needs_build() -> bool:
    """Whether ``find`` would have to run the Go compiler."""
    assets = assets_folder()
    if assets is not None and os.access(assets / "kube-controller-manager", os.X_OK):
        return False
    return not os.access(build_folder() / "controlplane", os.X_OK)


def find(say: Say = say_on_stderr) -> Binaries:
    """All four programs; builds what is missing, which takes minutes the first time and says so."""
    assets = assets_folder()
    from_assets = {n: assets / n for n in NAMES if assets and os.access(assets / n, os.X_OK)}
    if "kube-controller-manager" in from_assets:
        built = {}
    else:
        folder = build(say)
        built = {n: folder / n for n in NAMES}
    chosen = built | from_assets
    own_kubectl = _own_kubectl()
    if own_kubectl and "kubectl" not in from_assets:
        chosen["kubectl"] = own_kubectl
    if "kubectl" not in chosen:
        raise MissingToolError(
            f"no kubectl 1.{OLDEST_KUBECTL[1]} or later in KUBEBUILDER_ASSETS or PATH: add one, "
            "or unset KUBEBUILDER_ASSETS to have it built"
        )
    return Binaries(*(chosen[n] for n in NAMES))


def _own_kubectl() -> Path | None:
    """The user's kubectl when it is new enough to bind a token to a Node, else None."""
    path = shutil.which("kubectl")
    if path is None:
        return None
    try:
        answer = subprocess.run(
            [path, "version", "--client", "-o", "json"], capture_output=True, timeout=20, check=True
        ).stdout
        version = json.loads(answer)["clientVersion"]["gitVersion"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    match = re.match(r"v(\d+)\.(\d+)", version)
    return Path(path) if match and (int(match[1]), int(match[2])) >= OLDEST_KUBECTL else None


def build(say: Say = say_on_stderr) -> Path:
    """The folder with the four names, built when it isn't there yet. Two callers never build twice."""
    folder = build_folder()
    if os.access(folder / "controlplane", os.X_OK):
        _link(folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another run is building the control plane: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.access(folder / "controlplane", os.X_OK):
            _compile(folder, say)
        _link(folder)
    return folder


def _link(folder: Path) -> None:
    for name in NAMES:
        link = folder / name
        if link.is_symlink() and os.readlink(link) == "controlplane":
            continue
        fresh = folder / f".{name}.{os.getpid()}"
        fresh.symlink_to("controlplane")
        fresh.replace(link)


def _compile(folder: Path, say: Say) -> None:
    check_go()
    release = kubernetes_version()
    say(
        f"Building etcd, Kubernetes {release} and kubectl from their Go modules. The first time this takes "
        f"about 7 minutes on 2 cores, and 2 GB for downloads and Go's build cache. "
        f"The result is kept in {folder}."
    )
    started = time.monotonic()
    total = _package_count()
    _run_compiler(folder / ".building", release, total, started, say)
    (folder / ".building").replace(folder / "controlplane")
    say(f"Control plane built in {time.monotonic() - started:.0f} s.")


def _package_count() -> int:
    """How many packages the build has; downloads the modules on the way."""
    listing = subprocess.run(
        ["go", "list", "-deps", "."],
        check=False,
        cwd=SOURCE,
        capture_output=True,
        text=True,
        env=_go_environment(),
    )
    if listing.returncode != 0:
        raise RuntimeError(f"go list failed in {SOURCE}:\n{listing.stderr[-3000:]}")
    return len(listing.stdout.splitlines())


def _go_environment() -> dict[str, str]:
    return os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _run_compiler(target: Path, release: str, total: int, started: float, say: Say) -> None:
    major, minor, _ = release.removeprefix("v").split(".", 2)
    stamp = "k8s.io/component-base/version."
    flags = " ".join(
        [
            "-s",
            "-w",
            f"-X {stamp}gitVersion={release}",
            f"-X {stamp}gitMajor={major}",
            f"-X {stamp}gitMinor={minor}",
        ]
    )
    argv = ["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(target), "."]
    compiler = subprocess.Popen(
        argv, cwd=SOURCE, env=_go_environment(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    lines: list[str] = []

    def read() -> None:
        assert compiler.stderr is not None
        for line in compiler.stderr:  # go names each package as it finishes
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while compiler.poll() is None:
            try:
                compiler.wait(PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - started
                say(f"  {min(len(lines), total)} of {total} packages compiled, {elapsed:.0f} s")
    except BaseException:
        compiler.kill()
        compiler.wait()
        raise
    reader.join()
    if compiler.returncode != 0:
        raise RuntimeError("building the control plane failed:\n" + "".join(lines[-30:]))
