# SPDX-License-Identifier: Apache-2.0
"""The command line: what it takes, and what it says when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_speaker.__main__ import settings
from holdfast_speaker.main import missing_capabilities

ALL = (1 << 41) - 1


def test_flags_win_over_the_environment() -> None:
    environ = {"NODE_NAME": "h1", "KUBECONFIG": "/a"}
    wanted = settings(["--node", "h2", "--kubeconfig", "/b", "--run-dir", "/c"], environ)
    assert (wanted.node, wanted.environ["KUBECONFIG"], wanted.run_dir) == ("h2", "/b", Path("/c"))
    wanted = settings([], environ)
    assert (wanted.node, wanted.environ["KUBECONFIG"]) == ("h1", "/a")


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:9441", ("127.0.0.1", 9441)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("0.0.0.0", 80)),  # noqa: S104
        ("", None),
    ],
)
def test_metrics_addresses(text: str, endpoint: tuple[str, int] | None) -> None:
    assert settings(["--node", "h1", "--metrics-address", text], {}).metrics == endpoint


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "which node is this? Give --node NAME, or set NODE_NAME"),
        (["--node", "H1"], "'H1' is no name of a Kubernetes node"),
        (["--node", "-x"], "expected one argument"),
        (["--node", "h1", "--metrics-address", "9441"], "HOST:PORT"),
        (["--node", "h1", "--metrics-address", "a:99999"], "HOST:PORT"),
        (["--node", "h1", "--log-level", "loud"], "invalid choice"),
        (["--node", "h1", "--surprise"], "unrecognized arguments"),
        (["--node", "h1", "--advert-auth", "enforce"], "--advert-auth needs keys: give --advert-keys DIR"),
        (["--node", "h1", "--advert-keys", "/k", "--advert-auth", "strict"], "invalid choice"),
    ],
)
def test_wrong_use_is_refused_with_the_flag_and_the_remedy(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings(argv, {})
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_keys_begin_permissive_unless_told_otherwise() -> None:
    wanted = settings(["--node", "h1", "--advert-keys", "/keys"], {})
    assert (wanted.advert_keys, wanted.advert_auth) == (Path("/keys"), "permissive")
    wanted = settings(["--node", "h1", "--advert-keys", "/keys", "--advert-auth", "enforce"], {})
    assert wanted.advert_auth == "enforce"
    assert settings(["--node", "h1"], {}).advert_keys is None


def test_missing_capabilities_are_named() -> None:
    assert missing_capabilities(ALL) == []
    assert missing_capabilities(1 << 13) == ["NET_ADMIN"]
    assert missing_capabilities(0) == ["NET_ADMIN", "NET_RAW"]


def speaker(*argv: str, script: str = "") -> "subprocess.CompletedProcess[str]":
    call = f"import sys; {script}; sys.argv[1:] = {list(argv)!r}\n"
    call += "from holdfast_speaker.__main__ import main; main()"
    environ = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True, env=environ, check=False
    )


def test_version_and_help_need_no_extra_and_no_rights() -> None:
    without = "sys.modules.update(scapy=None, pyroute2=None)"
    assert speaker("--version", script=without).stdout.startswith("holdfast-speaker ")
    assert "--node" in speaker("--help", script=without).stdout


@pytest.mark.parametrize("package", ["scapy", "pyroute2"])
def test_a_missing_extra_is_named_with_its_remedy(package: str) -> None:
    done = speaker("--node", "h1", script=f"sys.modules[{package!r}] = None")
    assert done.returncode == 2
    assert package in done.stderr
    assert "pip install 'holdfast[speaker]'" in done.stderr
    assert "Traceback" not in done.stderr
