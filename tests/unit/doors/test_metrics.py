# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads."""

import socket
from urllib.request import urlopen

import pytest

from holdfast_speaker.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"holdfast_{name}", labels)


def test_everything_named_in_an_effect_is_counted() -> None:
    metrics = Metrics("1", "h1")
    metrics.count("adverts_sent", "", 1)
    metrics.count("adverts_received", "", 2)
    metrics.count("discards", "TTL", 3)
    metrics.count("transitions", "ActiveSilent", 1)
    metrics.count("announcements", "", 255)
    metrics.count("conflicts", "", 1)
    assert sample(metrics, "adverts_received_total") == 2
    assert sample(metrics, "discards_total", reason="TTL") == 3
    assert sample(metrics, "transitions_total", reason="ActiveSilent") == 1
    assert sample(metrics, "announcements_total") == 255


def test_reasons_from_the_network_cannot_fill_the_memory() -> None:
    metrics = Metrics("1", "h1")
    for number in range(10_000):
        metrics.count("discards", f"reason-{number}", 1)
    (family,) = [f for f in metrics.registry.collect() if f.name == "holdfast_discards"]
    totals = [s for s in family.samples if s.name.endswith("_total")]
    assert len(totals) <= 130
    assert sum(s.value for s in totals) == 10_000


def test_it_is_served_until_stopped_and_a_taken_port_is_an_error() -> None:
    metrics = Metrics("1", "h1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = metrics.serve("127.0.0.1", port)
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert 'holdfast_speaker_info{node="h1",version="1"} 1.0' in text
        assert "holdfast_loop_lateness_seconds_bucket" in text
        assert "process_resident_memory_bytes" in text
        with pytest.raises(OSError, match="in use"):
            metrics.serve("127.0.0.1", port)
    finally:
        stop()
