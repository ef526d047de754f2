# SPDX-License-Identifier: Apache-2.0
"""Where the API server is: kubeconfig files, service accounts, and what to do when neither says."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast_api.kubeconfig import Config, ConfigError, Token

CLUSTER = {"server": "https://192.0.2.1:6443/", "insecure-skip-tls-verify": True}


def kubeconfig(
    folder: Path, *, cluster: Any = None, user: Any = None, name: str = "config", **more: Any
) -> Path:
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": CLUSTER if cluster is None else cluster}],
        "users": [{"name": "u", "user": {"token": "secret"} if user is None else user}],
    } | more
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def loaded(path: Path) -> Config:
    return Config.load({"KUBECONFIG": str(path)})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    made = (folder / "tls.crt", folder / "tls.key")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-subj", "/CN=test", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(command, check=True, capture_output=True)
    return made


def test_server_and_token(tmp_path: Path) -> None:
    config = loaded(kubeconfig(tmp_path))

    assert config.server == "https://192.0.2.1:6443"
    assert config.token.current() == "secret"
    assert "secret" not in repr(config)


def test_certificates_as_data_and_as_files(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    crt, key = certificate
    in_file = {"server": "https://a", "certificate-authority": str(crt)}
    as_data = {
        "server": "https://a",
        "certificate-authority-data": base64.b64encode(crt.read_bytes()).decode(),
    }
    user_files = {"client-certificate": str(crt), "client-key": str(key)}
    user_data = {
        f"{name}-data": base64.b64encode(Path(path).read_bytes()).decode()
        for name, path in user_files.items()
    }

    for cluster, user in ((in_file, user_files), (as_data, user_data)):
        tls = loaded(kubeconfig(tmp_path, cluster=cluster, user=user)).tls
        assert tls is not None
        assert tls.check_hostname
        assert len(tls.get_ca_certs()) == 1


def test_paths_start_at_their_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file\n")

    assert loaded(kubeconfig(tmp_path, user={"tokenFile": "token"})).token.current() == "from a file"


def test_of_several_files_the_first_to_say_something_wins(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": "first"}}]}))
    second = kubeconfig(tmp_path)

    config = Config.load({"KUBECONFIG": f"{first}:{tmp_path / 'none'}:{second}"})

    assert config.token.current() == "first"


def test_in_cluster(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    (tmp_path / "token").write_text("pod")
    (tmp_path / "ca.crt").write_bytes(certificate[0].read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}

    config = Config.load(environ, service_account=tmp_path)

    assert config.server == "https://[fd00::1]:443"
    assert config.token.current() == "pod"


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"current-context": ""}, "kubectl config use-context"),
        ({"contexts": []}, "no context named here"),
        ({"clusters": []}, "no cluster named c"),
        ({"users": None}, "no user named u"),
        ({"cluster": {"server": "192.0.2.1"}}, "https://HOST:6443"),
        ({"cluster": CLUSTER | {"proxy-url": "http://p"}}, "proxy-url"),
        ({"cluster": {"server": "https://a", "certificate-authority-data": "%"}}, "not base64"),
        ({"cluster": {"server": "https://a", "certificate-authority": "none"}}, "certificate authority"),
        ({"user": {"exec": {"command": "aws"}}}, "logs in by exec"),
        ({"user": {"tokenFile": "none"}}, "is missing"),
        ({"user": {"token": 5}}, "must be text"),
        ({"user": {"client-certificate": "none", "client-key": "none"}}, "client certificate"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, change: Any, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        loaded(kubeconfig(tmp_path, **change))


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_kubeconfig_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)

    with pytest.raises(ConfigError, match="kubeconfig"):
        loaded(path)


def test_nothing_at_all_is_said() -> None:
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        Config.load({})
    with pytest.raises(ConfigError, match="names no file"):
        Config.load({"KUBECONFIG": "/nowhere/at/all"})
    with pytest.raises(ConfigError, match="serviceAccountName"):
        Config.load({"KUBERNETES_SERVICE_HOST": "a"}, service_account=Path("/nowhere"))


def test_a_token_file_is_read_once_a_minute(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "token"
    file.write_text("one")
    token = Token(file=file, clock=lambda: now)
    assert token.current() == "one"
    file.write_text("two")

    now = 59.0
    assert token.current() == "one"
    now = 60.0
    assert token.current() == "two"

    file.unlink()
    now = 200.0
    assert token.current() == "two"


def test_a_refused_token_is_read_again_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    token = Token(file=file, clock=lambda: 0.0)
    assert token.current() == "one"

    assert not token.refused("one")
    file.write_text("two")
    assert token.refused("one")
    assert token.current() == "two"
    assert not Token("fixed").refused("fixed")
