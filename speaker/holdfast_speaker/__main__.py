# SPDX-License-Identifier: Apache-2.0
"""``holdfast-speaker``: the words of the command line, then everything else, imported late."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from holdfast_speaker.settings import Settings

_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_WRONG_USE: Final = 2
_LEVELS: Final = ("debug", "info", "warning", "error")
_MODES: Final = ("permissive", "enforce")
_DESCRIPTION: Final = "Holds virtual IP addresses on this node: VRRPv3 on the segment, plans from Kubernetes."


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="holdfast-speaker", description=_DESCRIPTION)
    say = parser.add_argument
    say("--version", action="version", version=f"holdfast-speaker {version()}")
    say("--node", default=environ.get("NODE_NAME", ""), help="this node's name (default: NODE_NAME)")
    say(
        "--kubeconfig",
        default=environ.get("KUBECONFIG", ""),
        help="way to the API (default: KUBECONFIG, else the pod's service account)",
    )
    say(
        "--run-dir", type=Path, default=Path("/run/holdfast"), help="the last plan is kept here (%(default)s)"
    )
    say(
        "--metrics-address",
        default="127.0.0.1:9441",
        help="HOST:PORT for Prometheus; empty: none (%(default)s)",
    )
    say(
        "--advert-keys",
        type=Path,
        metavar="DIR",
        help="sign adverts with the keys in this directory (a mounted Secret): files named 1 to 255",
    )
    say(
        "--advert-auth",
        choices=_MODES,
        help="with --advert-keys: permissive still obeys unsigned adverts, enforce refuses them (permissive)",
    )
    say("--log-level", choices=_LEVELS, default="info", help="(%(default)s)")
    return parser


def version() -> str:
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "unknown"


def settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """What the command line asks for. Ends the process with a sentence when it cannot be done."""
    parser = _parser(environ)
    said = parser.parse_args(argv)
    if not said.node:
        parser.error("which node is this? Give --node NAME, or set NODE_NAME (spec.nodeName in a pod)")
    if not _NODE_NAME.fullmatch(said.node):
        parser.error(f"--node {said.node!r} is no name of a Kubernetes node: small letters, digits, - and .")
    if said.advert_auth and said.advert_keys is None:
        parser.error("--advert-auth needs keys: give --advert-keys DIR")
    return Settings(
        node=said.node,
        version=version(),
        environ={**environ, "KUBECONFIG": said.kubeconfig} if said.kubeconfig else dict(environ),
        run_dir=said.run_dir,
        metrics=_endpoint(parser, said.metrics_address),
        log_level=logging.getLevelNamesMapping()[said.log_level.upper()],
        advert_keys=said.advert_keys,
        advert_auth=said.advert_auth or "permissive",
    )


def _endpoint(parser: argparse.ArgumentParser, text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        parser.error(f"--metrics-address {text!r} must be HOST:PORT, [HOST]:PORT for IPv6, or empty")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - what an empty host asks for


def main() -> None:
    wanted = settings(sys.argv[1:], os.environ)
    try:
        from holdfast_speaker.main import run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"holdfast-speaker: the Python package {error.name} is not installed; "
            "install Holdfast with its speaker extra: pip install 'holdfast[speaker]'\n"
        )
        sys.exit(_WRONG_USE)
    sys.exit(run(wanted))


if __name__ == "__main__":
    main()
