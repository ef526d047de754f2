# SPDX-License-Identifier: Apache-2.0
"""Keys and kubeconfigs, without openssl or kubectl."""

import base64
import json
import secrets
from pathlib import Path


def write_kubeconfig(
    path: Path, *, server: str, ca_file: Path, user: str, token: str, rotating: bool = False
) -> Path:
    """A kubeconfig with a token; ``rotating``: in ``PATH.token`` beside it, read again as in a pod.

    Readable by the owner only; replaced in one step when it is there.
    """
    authority = base64.b64encode(ca_file.read_bytes()).decode()
    account = {"token": token}
    if rotating:
        token_file = path.with_name(f"{path.name}.token")
        _replace(token_file, token)
        account = {"tokenFile": token_file.name}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": user, "user": account}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": user}}],
        "current-context": "rig",
    }
    _replace(path, json.dumps(content, indent=1))
    return path


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


def ecdsa_key() -> str:
    """A fresh P-256 private key in PEM (RFC 5915; the public part is optional and left to the reader)."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    scalar = (secrets.randbelow(order - 1) + 1).to_bytes(32, "big")
    curve = bytes.fromhex("a00a06082a8648ce3d030107")  # [0] OBJECT IDENTIFIER prime256v1
    body = b"\x02\x01\x01" + b"\x04\x20" + scalar + curve
    text = base64.b64encode(b"\x30" + bytes([len(body)]) + body).decode()
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN EC PRIVATE KEY-----\n{lines}\n-----END EC PRIVATE KEY-----\n"
