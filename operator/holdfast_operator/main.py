# SPDX-License-Identifier: Apache-2.0
"""Settings, wiring, life and death of the operator's process."""

import argparse
import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prometheus_client import start_http_server

from holdfast_api.kube import ApiTrouble, Config, ConfigError, Kube
from holdfast_api.names import OPERATOR_LEASE, OPERATOR_NAMESPACE, SPEAKER_LEASE_NAMESPACE
from holdfast_operator import handlers
from holdfast_operator.cache import Cache, Kind
from holdfast_operator.cluster import Cluster, MissingKindError
from holdfast_operator.election import Election, boottime_s
from holdfast_operator.login import load_config
from holdfast_operator.logs import set_up_logs
from holdfast_operator.planner import Planner
from holdfast_operator.world import DRAIN_TAINTS, DrainRule

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3.0  # below the time for which a renewal of the Lease is trusted
RESTART_S = (1.0, 30.0)  # pause before the next life: first and longest
START_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Settings:
    kubeconfig: str | None
    namespace: str
    speaker_namespace: str
    virtual_router_ids: range
    drain_rule: DrainRule
    metrics_address: str | None
    liveness_address: str | None
    log_level: str
    log_format: str


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit code. 2: the settings or the cluster must be put right first."""
    settings = parse(argv, os.environ)
    set_up_logs(settings.log_level, settings.log_format)
    try:
        config = load_config(settings.kubeconfig, os.environ)
    except ConfigError as error:
        log.error("%s", error)
        return 2
    if settings.metrics_address is not None:
        host, port = _host_port(settings.metrics_address)
        start_http_server(port, host)
    return _live(settings, config)


def _live(settings: Settings, config: Config) -> int:
    """One life after the other, until a signal asks us to stop. kopf ends on errors that pass."""
    pause_s, longest_s = RESTART_S
    liveness = f"http://{settings.liveness_address}/healthz" if settings.liveness_address else None
    while True:
        began_s = time.monotonic()
        try:
            asyncio.run(_life(settings, config, liveness))
            return 0
        except MissingKindError as error:
            log.error("%s", error)
            return 2
        except Exception:
            if time.monotonic() - began_s > longest_s:
                pause_s = RESTART_S[0]
            log.exception("the operator starts anew in %g s", pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)


async def _life(settings: Settings, config: Config, liveness: str | None) -> None:
    process = Process(settings, config)
    try:
        await process.start()
        await handlers.serve(process, config, liveness=liveness)
    finally:
        await process.stop()


class Process:
    """One life: the parts and how they hang together. See ``handlers.Operator``."""

    def __init__(self, settings: Settings, config: Config) -> None:
        me = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"
        self._kube = Kube(config, f"holdfast-operator/{version('holdfast')}", REQUEST_TIMEOUT_S)
        self._cache = Cache(
            virtual_router_ids=settings.virtual_router_ids,
            now_s=boottime_s(),
            drain_rule=settings.drain_rule,
        )
        self._election = Election(
            self._kube,
            namespace=settings.namespace,
            name=OPERATOR_LEASE,
            me=me,
            floor=self._cache.highest_epoch,
            on_change=self._lead_changed,
        )
        cluster = Cluster(
            self._kube, self._cache, self._election, speaker_namespace=settings.speaker_namespace
        )
        self._planner = Planner(self._cache, cluster, self._election, reporter=me)

    def _lead_changed(self, leading: bool) -> None:
        self._planner.lead_changed(leading)

    async def start(self) -> None:
        """Lists everything, however long the API takes to be there."""
        told = False
        while True:
            try:
                await self._planner.list_all()
            except ApiTrouble as error:
                log.log(logging.DEBUG if told else logging.WARNING, "waiting for the API server: %s", error)
                told = True
                await asyncio.sleep(START_PAUSE_S)
                continue
            self._planner.look_again()
            return

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._election.run())
            tasks.create_task(self._planner.run())

    async def stop(self) -> None:
        await self._election.release()
        await self._kube.close()

    def seen(self, kind: Kind, raw: Mapping[str, Any], *, listed: bool, deleted: bool) -> None:
        if deleted:
            changed = self._cache.deleted(kind, raw)
        else:
            changed = self._cache.seen(kind, raw, boottime_s(), listed=listed)
        if changed:
            self._planner.look_again()

    def watch_renewed(self) -> None:
        self._planner.list_again()

    def idle_s(self) -> float:
        return boottime_s() - self._planner.heartbeat_s


# --- settings -----------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Settings:
    """Flags over environment over defaults; SystemExit with a sentence when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="holdfast-operator",
        description="Plans VirtualIPs into VirtualRouters, which the speakers run, and says what came of it.",
        epilog="Each flag can be given as an environment variable too: --vrid-range as HOLDFAST_VRID_RANGE.",
    )

    def flag(name: str, default: str | None, text: str, **more: Any) -> None:
        variable = "HOLDFAST_" + name.removeprefix("--").replace("-", "_").upper()
        parser.add_argument(name, default=environ.get(variable) or default, help=text, **more)

    flag(
        "--kubeconfig", environ.get("KUBECONFIG"), "kubeconfig file; default: KUBECONFIG, else the pod's own"
    )
    flag("--namespace", OPERATOR_NAMESPACE, "namespace of the operator's own Lease (default %(default)s)")
    flag("--speaker-namespace", SPEAKER_LEASE_NAMESPACE, "namespace of the speakers' Leases (%(default)s)")
    flag("--vrid-range", "1-255", "VRIDs that may be used (default %(default)s)", type=_span)
    flag(
        "--drain-on",
        "Label",
        "Label: the label holdfast.dev/drain and the taints below drain a node; Cordon: kubectl cordon "
        "does so too (default %(default)s)",
        choices=("Label", "Cordon"),
    )
    flag("--drain-taints", ",".join(DRAIN_TAINTS), "taint keys that drain a node (%(default)s)", type=_keys)
    flag("--metrics-address", None, "HOST:PORT to serve Prometheus metrics on (default: none)", type=_address)
    flag("--liveness-address", None, "HOST:PORT to serve /healthz on (default: none)", type=_address)
    levels = ("debug", "info", "warning", "error")
    flag("--log-level", "info", "debug, info, warning or error (default %(default)s)", choices=levels)
    flag("--log-format", "text", "text or json (default %(default)s)", choices=("text", "json"))
    parser.add_argument("--version", action="version", version=f"holdfast-operator {version('holdfast')}")
    found = parser.parse_args(argv)
    return Settings(
        kubeconfig=found.kubeconfig,
        namespace=found.namespace,
        speaker_namespace=found.speaker_namespace,
        virtual_router_ids=found.vrid_range,
        drain_rule=DrainRule(taints=found.drain_taints, cordon=found.drain_on == "Cordon"),
        metrics_address=found.metrics_address,
        liveness_address=found.liveness_address,
        log_level=found.log_level,
        log_format=found.log_format,
    )


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of VRIDs: write it like 51-100")
    span = range(int(first), int(last or first) + 1)
    if not span or span[0] < 1 or span[-1] > 255:
        raise argparse.ArgumentTypeError(f"{text!r}: VRIDs go from 1 to 255, the lower one first")
    return span


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    wrong = next((key for key in keys if "=" in key or ":" in key), None)
    if wrong is not None:
        raise argparse.ArgumentTypeError(f"{wrong!r}: give the taint's key alone, without value and effect")
    return keys


def _address(text: str) -> str:
    host, port = _host_port(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT: write it like 127.0.0.1:9180")
    return f"{host}:{port}"


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "0.0.0.0", int(port) if port.isdecimal() else 0  # noqa: S104  ":9180" means everywhere
