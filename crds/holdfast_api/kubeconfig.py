# SPDX-License-Identifier: Apache-2.0
"""Where the API server is and who we are: KUBECONFIG, or the service account of a pod.

Read once at start, except the token: one in a file is rotated, so it is read again at most once a
minute and at once after a 401.
"""

import base64
import binascii
import os
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REREAD_S: Final = 60.0
_OTHER_LOGINS: Final = ("exec", "auth-provider", "username")


class ConfigError(Exception):
    """The way to the API server cannot be known; the message says what to do."""


class Token:
    """A bearer token: fixed, or from a file that somebody rotates."""

    def __init__(
        self, fixed: str | None = None, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._value = fixed
        self._file = file
        self._clock = clock
        self._read_at: float | None = None

    def current(self) -> str | None:
        """The token to send now. A file that cannot be read just now leaves the last one in force."""
        if self._file is not None and (self._read_at is None or self._clock() - self._read_at >= REREAD_S):
            self._read_at = self._clock()
            with suppress(OSError, UnicodeDecodeError):
                self._value = self._file.read_text().strip() or self._value
        return self._value

    def refused(self, token: str | None) -> bool:
        """The server refused this token (401): read the file again now. Whether there is another to try."""
        if self._file is None:
            return False
        self._read_at = None
        return self.current() != token


@dataclass(frozen=True, slots=True)
class Config:
    """The API server's URL without a final slash, TLS (None for plain http) and our credentials."""

    server: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    tls_server_name: str | None = None
    token: Token = field(default_factory=Token, repr=False)

    @classmethod
    def load(cls, environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> "Config":
        """From KUBECONFIG (one or several files, the first to say something wins), else in-cluster."""
        if environ.get("KUBECONFIG"):
            try:
                return _from_kubeconfig(
                    [Path(p).expanduser() for p in environ["KUBECONFIG"].split(os.pathsep) if p]
                )
            except (ValueError, RuntimeError) as error:  # a URL or path that is none, a home nobody has
                raise ConfigError(f"the kubeconfig cannot be used: {error}") from error
        if environ.get("KUBERNETES_SERVICE_HOST"):
            return _in_cluster(environ, service_account)
        raise ConfigError(
            "No way to the Kubernetes API: set KUBECONFIG to a kubeconfig file, "
            "or run in a pod with a service account"
        )


# --- in-cluster ---------------------------------------------------------------------------------


def _in_cluster(environ: Mapping[str, str], service_account: Path) -> Config:
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT") or "443"
    token = service_account / "token"
    if not token.is_file():
        raise ConfigError(
            f"{token} is missing: run the pod with a serviceAccountName "
            "and automountServiceAccountToken: true"
        )
    return Config(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        tls=_tls(ca_file=service_account / "ca.crt", where="the service account"),
        token=Token(file=token),
    )


# --- kubeconfig ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cluster, user or context of a kubeconfig; relative paths start at the file it stands in."""

    name: str
    body: Mapping[str, Any]
    folder: Path

    def text(self, key: str) -> str | None:
        value = self.body.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise ConfigError(f"{key} of {self.name} in the kubeconfig must be text")
        return value

    def file(self, key: str) -> Path | None:
        value = self.text(key)
        return None if value is None else self.folder / Path(value).expanduser()

    def data(self, key: str) -> bytes | None:
        value = self.text(key)
        if value is None:
            return None
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ConfigError(f"{key} of {self.name} in the kubeconfig is not base64") from error


def _from_kubeconfig(files: list[Path]) -> Config:
    documents = [(path, _document(path)) for path in files if path.exists()]
    if not documents:
        named = ", ".join(map(str, files))
        raise ConfigError(f"KUBECONFIG names no file that exists ({named}): correct it or unset it")
    current = next((d["current-context"] for _, d in documents if d.get("current-context")), None)
    if current is None:
        raise ConfigError("The kubeconfig has no current-context: run kubectl config use-context NAME")
    context = _entry(documents, "contexts", "context", current)
    cluster = _entry(documents, "clusters", "cluster", context.text("cluster"))
    user = _entry(documents, "users", "user", context.text("user"))
    server = (cluster.text("server") or "").rstrip("/")
    if urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
        raise ConfigError(f"cluster {cluster.name} in the kubeconfig needs a server like https://HOST:6443")
    if cluster.text("proxy-url"):
        raise ConfigError(
            f"cluster {cluster.name} in the kubeconfig has a proxy-url, which Holdfast does not use"
        )
    tls = None if server.startswith("http://") else _cluster_tls(cluster, user)
    return Config(
        server=server, tls=tls, tls_server_name=cluster.text("tls-server-name"), token=_user_token(user)
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a kubeconfig: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is no kubeconfig: it holds no mapping")
    return document


def _entry(documents: list[tuple[Path, dict[str, Any]]], plural: str, kind: str, name: str | None) -> _Entry:
    for path, document in documents:
        items = document.get(plural)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(kind), dict):
                return _Entry(f"{kind} {name}", item[kind], path.parent)
    raise ConfigError(f"The kubeconfig has no {kind} named {name}: add it, or choose another current-context")


def _user_token(user: _Entry) -> Token:
    file = user.file("tokenFile")
    if file is not None and not file.is_file():
        raise ConfigError(f"tokenFile {file} of {user.name} is missing")
    if file is not None or user.text("token"):
        return Token(user.text("token"), file)
    other = next((key for key in _OTHER_LOGINS if user.body.get(key)), None)
    if other is not None:
        raise ConfigError(
            f"{user.name} in the kubeconfig logs in by {other}, which Holdfast cannot: "
            "use a token, a tokenFile or a client certificate"
        )
    return Token()


def _cluster_tls(cluster: _Entry, user: _Entry) -> ssl.SSLContext:
    context = _tls(
        ca_file=cluster.file("certificate-authority"),
        ca_data=cluster.data("certificate-authority-data"),
        insecure=cluster.body.get("insecure-skip-tls-verify") is True,
        where=cluster.name,
    )
    # OpenSSL reads keys from files only, and a pod's disk is read-only: an unnamed file in memory.
    with ExitStack() as open_files:
        certificate = _as_file(user, "client-certificate", open_files)
        key = _as_file(user, "client-key", open_files)
        if certificate is not None:
            try:
                context.load_cert_chain(certificate, key)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"the client certificate of {user.name} cannot be used: {error}") from error
    return context


def _as_file(user: _Entry, key: str, open_files: ExitStack) -> Path | None:
    data = user.data(f"{key}-data")
    if data is None:
        return user.file(key)
    memory = open_files.enter_context(os.fdopen(os.memfd_create(key), "wb"))
    memory.write(data)
    memory.flush()
    return Path(f"/proc/self/fd/{memory.fileno()}")


def _tls(
    *, ca_file: Path | None = None, ca_data: bytes | None = None, insecure: bool = False, where: str
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=None if ca_data is not None else ca_file,
            cadata=None if ca_data is None else ca_data.decode("ascii"),
        )
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the certificate authority of {where} cannot be read ({ca_file}): {error}"
        ) from error
    # Many clusters' own CAs lack the key usage extension that Python 3.13 asks for by default.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
