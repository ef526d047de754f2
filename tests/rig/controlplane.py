# SPDX-License-Identifier: Apache-2.0
"""etcd, kube-apiserver and kube-controller-manager of one run, with Holdfast's rules in force.

The same as in a real cluster where it matters: TLS, RBAC, the Node authorizer, default admission, bound
service-account tokens, the garbage collector. What writes to it is recorded (``writes``).
"""

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.rig import binaries
from tests.rig.api import Api, ApiError, Object, condition, documents
from tests.rig.credentials import ecdsa_key, write_kubeconfig
from tests.rig.process import Process
from tests.rig.run import RigError, Run, dying_with_parent, in_namespace

ROOT: Final = Path(__file__).resolve().parents[2]
MANIFESTS: Final = ("crds", "charts/holdfast/files")
SYSTEM_NAMESPACE: Final = "holdfast-system"
READY_SECONDS: Final = 60.0
TOKEN_SECONDS: Final = 24 * 3600
# Only what the stories need: namespaces that really end, service accounts, garbage, aggregated roles.
CONTROLLERS: Final = (
    "namespace-controller,serviceaccount-controller,garbage-collector-controller,"
    "clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller"
)
AUDIT_POLICY: Final = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
"""


@dataclass(frozen=True, slots=True)
class Write:
    """One request that was not a read, as the audit log tells it. ``code`` is the HTTP status."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    node: str  # the Node that the user's token is bound to, or ""


class ControlPlane:
    """A control plane on ``address``, in ``netns`` or (None) where we are; ready after ``launch``."""

    def __init__(
        self,
        run: Run,
        *,
        netns: Path | None = None,
        address: str = "127.0.0.1",
        say: Callable[[str], None] = binaries.say_on_stderr,
    ) -> None:
        self._run = run
        self.netns = netns
        self._address = address
        self._say = say
        self.folder = run.folder / "controlplane"
        self.folder.mkdir()
        self._ports = _free_ports(3) if netns is None else (6443, 2379, 2380)
        self.server = f"https://{address}:{self._ports[0]}"
        self.port = self._ports[0]
        self.ca_file = self.folder / "certs" / "apiserver.crt"
        self.kubeconfig = self.folder / "admin.kubeconfig"
        self.audit_log = self.folder / "audit.log"
        self._admin_token = secrets.token_hex(16)
        self._controller_token = secrets.token_hex(16)
        self._etcd: Process | None = None
        self._apiserver: Process | None = None
        self._api: Api | None = None

    # --- life -----------------------------------------------------------------------------------

    def launch(self) -> "ControlPlane":
        """Starts all three, applies the CRDs and Holdfast's manifests, and returns when they are in force."""
        self._binaries = binaries.find(self._say)
        self._write_files()
        self._start_etcd()
        self.start()
        self._write_kubeconfig(self.kubeconfig, "admin", self._admin_token)
        controller = self.folder / "controller.kubeconfig"
        self._write_kubeconfig(controller, "controller", self._controller_token)
        argv = [str(self._binaries.controller), f"--kubeconfig={controller}", "--leader-elect=false"]
        argv += [f"--controllers={CONTROLLERS}", "--secure-port=0", "--use-service-account-credentials=true"]
        self._start("kube-controller-manager", argv)
        self.install()
        return self

    def start(self) -> None:
        """Starts the API server (again) and returns when it is ready."""
        if self._apiserver is not None and self._apiserver.running():
            return
        self._apiserver = self._start("kube-apiserver", self._apiserver_argv())
        self._wait_ready()

    def stop(self) -> None:
        """The API server dies at once, connections and all; etcd stays."""
        if self._apiserver is not None:
            self._apiserver.kill()

    def close(self) -> None:
        """Lets go of the connection; the processes end with their run."""
        if self._api is not None:
            self._api.close()

    def freeze(self) -> None:
        """The API server accepts and never answers, until ``thaw``."""
        assert self._apiserver is not None
        self._apiserver.pause()

    def thaw(self) -> None:
        assert self._apiserver is not None
        self._apiserver.resume()

    # --- using it -------------------------------------------------------------------------------

    @property
    def api(self) -> Api:
        """A client with all rights."""
        if self._api is None:
            self._api = Api(self.server, ca_file=self.ca_file, token=self._admin_token, netns=self.netns)
        return self._api

    def kubectl_argv(self, *args: str) -> list[str]:
        return in_namespace(
            self.netns, [str(self._binaries.kubectl), f"--kubeconfig={self.kubeconfig}", *args]
        )

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        """What kubectl printed; ``RigError`` with its words when it failed and ``check`` is set."""
        return self.kubectl_result(*args, input=input, check=check).stdout

    def kubectl_result(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002
        check: bool = False,
    ) -> "subprocess.CompletedProcess[str]":
        """The finished kubectl: ``returncode``, ``stdout``, ``stderr``."""
        env = os.environ | {"KUBECACHEDIR": str(self.folder / "kubecache"), "HOME": str(self.folder)}
        done = subprocess.run(
            self.kubectl_argv(*args),
            check=False,
            input=input,
            capture_output=True,
            text=True,
            timeout=90,
            env=env,
        )
        if check and done.returncode != 0:
            raise RigError(f"kubectl {' '.join(args)}: {done.stderr.strip()}\n{input or ''}")
        return done

    def node_token(self, node: str) -> str:
        """A token of the speaker's service account bound to the Node object, as a kubelet would fetch it."""
        return self._token("holdfast-speaker", {"apiVersion": "v1", "kind": "Node", "name": node})

    def operator_token(self) -> str:
        return self._token("holdfast-operator")

    def token_for(self, node: str, path: Path | None = None, *, rotating: bool = False) -> Path:
        """A kubeconfig with a fresh ``node_token``; written to ``path`` or into the run's folder.

        ``rotating``: the token stands in a file of its own; calling this again replaces it there.
        """
        target = path or self.folder / f"speaker-{node}.kubeconfig"
        return self._write_kubeconfig(target, f"speaker-{node}", self.node_token(node), rotating=rotating)

    def operator_kubeconfig(self, path: Path | None = None, *, rotating: bool = False) -> Path:
        """A kubeconfig with a fresh token of the operator's service account; otherwise as ``token_for``."""
        target = path or self.folder / "operator.kubeconfig"
        return self._write_kubeconfig(target, "operator", self.operator_token(), rotating=rotating)

    def add_node(self, name: str, *addresses: str, labels: dict[str, str] | None = None) -> Object:
        """A Node object, as a kubelet registers it: hostname label and InternalIP addresses in its status."""
        meta = {"name": name, "labels": {"kubernetes.io/hostname": name} | (labels or {})}
        self.api.apply_object({"apiVersion": "v1", "kind": "Node", "metadata": meta})
        internal = [{"type": "InternalIP", "address": a} for a in addresses]
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "",
            "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        status = {"addresses": [*internal, {"type": "Hostname", "address": name}], "conditions": [ready]}
        return self.api.merge("Node", name, {"status": status}, part="/status")

    def revoke_speaker_tokens(self) -> None:
        """All speakers' tokens end: their service account is made anew with another uid."""
        account = self.api.get("ServiceAccount", "holdfast-speaker", SYSTEM_NAMESPACE)
        if account is None:
            raise RigError(f"no service account holdfast-speaker in {SYSTEM_NAMESPACE}")
        self.api.delete("ServiceAccount", "holdfast-speaker", SYSTEM_NAMESPACE)
        meta = {k: v for k, v in account["metadata"].items() if k in ("name", "namespace", "labels")}
        self.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})

    # --- what was written -----------------------------------------------------------------------

    def mark(self) -> int:
        """A point in time for ``writes``."""
        return self.audit_log.stat().st_size if self.audit_log.exists() else 0

    def writes(self, since: int = 0) -> list[Write]:
        """Every request since ``mark`` that was not a read, whoever made it and whatever came of it."""
        if not self.audit_log.exists():
            return []
        with self.audit_log.open("rb") as log:
            log.seek(since)
            return [_write(json.loads(line)) for line in log if line.endswith(b"\n")]

    # --- inside ---------------------------------------------------------------------------------

    def install(self) -> None:
        """Applies crds/ and charts/holdfast/files/ as a user would, and waits until they are in force."""
        files = _manifests()
        if not files:
            raise RigError(f"no manifests in {ROOT}/crds and {ROOT}/charts/holdfast/files")
        args = [f"--filename={path}" for path in files]
        deadline = time.monotonic() + 20
        while True:
            done = self.kubectl_result("apply", "--server-side", *args)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise RigError(f"the manifests could not be applied:\n{done.stderr.strip()}")
            time.sleep(0.3)  # a rule may need the namespace, or the kind, that another file brings
        crds = [d["metadata"]["name"] for d in _objects(files) if d["kind"] == "CustomResourceDefinition"]
        while not all(self._established(name) for name in crds):
            if time.monotonic() > deadline:
                raise RigError("the CRDs did not become Established:\n" + self.kubectl("get", "crd"))
            time.sleep(0.05)
        while not self._policy_in_force():
            if time.monotonic() > deadline:
                raise RigError("the admission policy of the speakers did not come into force")
            time.sleep(0.05)

    def _established(self, name: str) -> bool:
        found = self.api.get("CustomResourceDefinition", name)
        if found is None or condition(found, "Established").get("status") != "True":
            return False
        code, _ = self.api.raw("GET", self.api.path(found["spec"]["names"]["kind"]) + "?limit=1")
        return code == 200  # for some milliseconds it is established but answers 404, or 429

    def _policy_in_force(self) -> bool:
        """Whether a speaker's account whose token names no Node is refused, as the policy says."""
        account = f"system:serviceaccount:{SYSTEM_NAMESPACE}:holdfast-speaker"
        body = {"apiVersion": "holdfast.dev/v1alpha1", "kind": "Speaker", "metadata": {"name": "nobody"}}
        path = self.api.path("Speaker") + "?dryRun=All"
        _, answer = self.api.raw("POST", path, body, headers={"Impersonate-User": account})
        return b"ValidatingAdmissionPolicy" in answer

    def _token(self, account: str, bound_to: Object | None = None) -> str:
        spec: Object = {"expirationSeconds": TOKEN_SECONDS}
        if bound_to is not None:
            spec["boundObjectRef"] = bound_to
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = self.api.path("ServiceAccount", account, SYSTEM_NAMESPACE) + "/token"
        token: str = self.api.request("POST", path, request)["status"]["token"]
        return token

    def _write_kubeconfig(self, path: Path, user: str, token: str, *, rotating: bool = False) -> Path:
        return write_kubeconfig(
            path, server=self.server, ca_file=self.ca_file, user=user, token=token, rotating=rotating
        )

    def _start(self, name: str, argv: list[str]) -> Process:
        return self._run.start(name, in_namespace(self.netns, dying_with_parent(argv)))

    def _write_files(self) -> None:
        (self.folder / "audit-policy.yaml").write_text(AUDIT_POLICY)
        (self.folder / "service-account.key").write_text(ecdsa_key())
        tokens = (
            f'{self._admin_token},rig-admin,rig-admin,"system:masters"\n'
            f'{self._controller_token},system:kube-controller-manager,controller-manager,"system:masters"\n'
        )
        (self.folder / "tokens.csv").write_text(tokens)
        for path in self.folder.iterdir():
            path.chmod(0o600)

    def _start_etcd(self) -> None:
        _, client, peer = self._ports
        argv = [
            str(self._binaries.etcd),
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--data-dir={self.folder}/etcd",
        ]
        argv += [f"--listen-client-urls=http://127.0.0.1:{client}"]
        argv += [f"--advertise-client-urls=http://127.0.0.1:{client}"]
        argv += [f"--listen-peer-urls=http://127.0.0.1:{peer}"]
        argv += [f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}"]
        argv += [f"--initial-cluster=default=http://127.0.0.1:{peer}"]
        self._etcd = self._start("etcd", argv)

    def _apiserver_argv(self) -> list[str]:
        key = self.folder / "service-account.key"
        return [
            str(self._binaries.apiserver),
            f"--etcd-servers=http://127.0.0.1:{self._ports[1]}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            f"--secure-port={self._ports[0]}",
            f"--cert-dir={self.folder}/certs",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--audit-policy-file={self.folder}/audit-policy.yaml",
            f"--audit-log-path={self.audit_log}",
            "--profiling=false",
        ]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        last = "it has not answered"
        while time.monotonic() < deadline:
            for process in (self._etcd, self._apiserver):
                if process is not None and not process.running():
                    raise RigError(f"{process.name} ended with {process.exit_code()}:\n{process.tail()}")
            try:
                code, body = self.api.raw("GET", "/readyz?verbose")
                if code == 200:
                    return
                last = body.decode(errors="replace")
            except (OSError, ssl.SSLError, ApiError) as error:
                last = str(error)
            time.sleep(0.05)
        assert self._apiserver is not None
        raise RigError(f"kube-apiserver not ready in {READY_SECONDS:.0f} s: {last}\n{self._apiserver.tail()}")


def _write(event: dict[str, Any]) -> Write:
    target = event.get("objectRef", {})
    user = event.get("user", {})
    return Write(
        user=user.get("username", ""),
        verb=event.get("verb", ""),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        node=next(iter(user.get("extra", {}).get("authentication.kubernetes.io/node-name", [])), ""),
    )


def _manifests() -> list[Path]:
    """What a user applies, namespaces first: the CRDs, then accounts, rights and the admission policy."""
    found = [p for folder in MANIFESTS for p in sorted((ROOT / folder).glob("*.yaml")) if p.stat().st_size]
    return sorted(found, key=lambda path: not any(d["kind"] == "Namespace" for d in _objects([path])))


def _objects(files: list[Path]) -> list[Object]:
    return [document for path in files for document in documents(path.read_text())]


def _free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
    finally:
        for each in sockets:
            each.close()
