# SPDX-License-Identifier: Apache-2.0
"""A small blocking client of the Kubernetes API that can stand in any network namespace.

For the rig and its tests: quick enough to poll every few milliseconds, where a kubectl costs a tenth of a
second of CPU.
"""

import ctypes
import http
import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import yaml

Object = dict[str, Any]

_CLONE_NEWNET: Final = 0x40000000
_HOLDFAST: Final = "/apis/holdfast.dev/v1alpha1"
# kind -> (where it is served, plural, namespaced)
KINDS: Final[dict[str, tuple[str, str, bool]]] = {
    "VirtualIP": (_HOLDFAST, "virtualips", True),
    "VirtualIPPool": (_HOLDFAST, "virtualippools", False),
    "VirtualRouter": (_HOLDFAST, "virtualrouters", False),
    "Speaker": (_HOLDFAST, "speakers", False),
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "Event": ("/apis/events.k8s.io/v1", "events", True),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
}


BUSY_RETRIES: Final = 50
BUSY_SECONDS: Final = 0.1


class ApiError(RuntimeError):
    """The API server refused; ``code`` is the HTTP status, ``reason`` the Status reason."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


def socket_in(netns: Path | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in another network namespace; a throw-away thread goes there to make it."""
    if netns is None:
        return socket.socket(family, kind, protocol)
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {netns}")
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            failed.append(error)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


class _Connection(http.client.HTTPSConnection):
    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext, netns: Path | None, timeout: float
    ) -> None:
        super().__init__(host, port, context=tls, timeout=timeout)
        self._tls = tls
        self._netns = netns

    def connect(self) -> None:
        raw = socket_in(self._netns, socket.AF_INET, socket.SOCK_STREAM)
        try:
            raw.settimeout(self.timeout)
            raw.connect((self.host, self.port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._tls.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise


class Api:
    """Requests as one user. Not for several threads at once; make one each (``Api.as_user``)."""

    def __init__(
        self, server: str, *, ca_file: Path, token: str, netns: Path | None, timeout_s: float = 10.0
    ) -> None:
        self._url = urlsplit(server)
        self._ca_file = ca_file
        self._token = token
        self._netns = netns
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._tls = ssl.create_default_context(cafile=str(ca_file))

    def as_user(self, token: str) -> "Api":
        return Api(
            self._url.geturl(),
            ca_file=self._ca_file,
            token=token,
            netns=self._netns,
            timeout_s=self._timeout_s,
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:  # tests make clients of many users and forget them
        self.close()

    def raw(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status code and body. A stale connection is tried once more; ``OSError`` when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type, **(headers or {})}
        for attempt in (1, 2):
            fresh = self._connection is None
            if self._connection is None:
                assert self._url.hostname is not None
                self._connection = _Connection(
                    self._url.hostname,
                    self._url.port or 443,
                    tls=self._tls,
                    netns=self._netns,
                    timeout=self._timeout_s,
                )
            try:
                self._connection.request(method, path, data, sent)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if fresh or attempt == 2:
                    raise error if isinstance(error, OSError) else OSError(str(error)) from error
        raise AssertionError("unreachable")

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> Object:
        for _ in range(BUSY_RETRIES):
            status, data = self.raw(method, path, body, content_type=content_type)
            if status != http.HTTPStatus.TOO_MANY_REQUESTS:  # a kind whose storage just starts
                break
            time.sleep(BUSY_SECONDS)
        answer: Object = json.loads(data) if data else {}
        if status >= 300:
            raise ApiError(
                status, answer.get("reason", ""), answer.get("message", data.decode(errors="replace"))
            )
        return answer

    # --- by kind --------------------------------------------------------------------------------

    def path(self, kind: str, name: str | None = None, namespace: str | None = None) -> str:
        base, plural, namespaced = KINDS[kind]
        middle = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return f"{base}{middle}/{plural}" + (f"/{name}" if name else "")

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """The object, or None when there is none."""
        try:
            return self.request("GET", self.path(kind, name, namespace))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def items(self, kind: str, namespace: str | None = None) -> list[Object]:
        items: list[Object] = self.request("GET", self.path(kind, None, namespace))["items"]
        return items

    def apply(self, text: str) -> list[Object]:
        """Server-side apply of each YAML document (namespace ``default`` where none is named)."""
        return [self.apply_object(o) for o in documents(text)]

    def apply_object(self, wanted: Object) -> Object:
        meta = wanted["metadata"]
        path = self.path(wanted["kind"], meta["name"], meta.get("namespace", "default"))
        query = urlencode({"fieldManager": "rig", "force": "true"})
        return self.request("PATCH", f"{path}?{query}", wanted, content_type="application/apply-patch+yaml")

    def create(self, wanted: Object) -> Object:
        namespace = wanted["metadata"].get("namespace", "default")
        return self.request("POST", self.path(wanted["kind"], None, namespace), wanted)

    def merge(
        self, kind: str, name: str, change: Object, *, namespace: str = "default", part: str = ""
    ) -> Object:
        """A merge patch; ``part`` is a subresource such as ``/status``."""
        path = self.path(kind, name, namespace) + part
        return self.request("PATCH", path, change, content_type="application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str = "default") -> bool:
        """False when there was none."""
        try:
            self.request("DELETE", self.path(kind, name, namespace))
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    def delete_all(self, kind: str, namespace: str | None = None) -> None:
        """Each object of the kind, wherever it is."""
        for item in self.items(kind, namespace):
            self.delete(kind, item["metadata"]["name"], item["metadata"].get("namespace", "default"))


def documents(text: str) -> Iterator[Object]:
    """The YAML documents of a text that are objects."""
    for document in yaml.safe_load_all(text):
        if document:
            yield document


def condition(thing: Object | None, kind: str) -> Object:
    """The condition of that type, or an empty one."""
    conditions: list[Object] = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), {})
