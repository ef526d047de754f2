# SPDX-License-Identifier: Apache-2.0
"""Counters of one speaker, served to Prometheus from a thread of its own."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import Final

import prometheus_client as prom

_STATES: Final = ("Initialize", "Backup", "Active")
_MOST_LABELS: Final = 64  # of one metric; what comes later is counted as "other"
_LATENESS_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)


class Metrics:
    """What the loop counts. Every method is cheap (about 1 us) and safe from the loop's thread."""

    def __init__(self, version: str, node: str) -> None:
        self.registry = prom.CollectorRegistry()
        prom.ProcessCollector(registry=self.registry)
        info = prom.Info("holdfast_speaker", "This speaker.", registry=self.registry)
        info.info({"version": version, "node": node})
        self._counters = {
            "adverts_sent": self._counter("adverts_sent", "VRRP adverts sent."),
            "adverts_received": self._counter("adverts_received", "Valid VRRP adverts heard."),
            "discards": self._counter("discards", "Frames not obeyed, by reason.", "reason"),
            "transitions": self._counter("transitions", "Takeovers, by reason.", "reason"),
            "announcements": self._counter("announcements", "Addresses announced."),
            "conflicts": self._counter("conflicts", "Times somebody else claimed an address of ours."),
        }
        self._labelled = frozenset({"discards", "transitions"})
        self._children: dict[tuple[str, str], prom.Counter] = {}
        self._failures = self._counter("brain_failures", "Events whose handling raised an exception.")
        self._frames_lost = self._counter("frames_lost", "Frames the NIC or its queue did not take.")
        self._lateness = prom.Histogram(
            "holdfast_loop_lateness_seconds",
            "How late a deadline was served.",
            buckets=_LATENESS_S,
            registry=self.registry,
        )
        self._routers = prom.Gauge(
            "holdfast_routers", "Virtual routers, by state.", ["state"], registry=self.registry
        )
        self._api = prom.Gauge(
            "holdfast_api_up", "1 while the Kubernetes API answers.", registry=self.registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> prom.Counter:
        return prom.Counter(f"holdfast_{name}", text, labels, registry=self.registry)

    def count(self, metric: str, label: str, amount: int) -> None:
        child = self._children.get((metric, label))
        if child is None:
            if len(self._children) >= _MOST_LABELS * len(self._labelled):
                label = "other"
            counter = self._counters[metric]
            child = counter.labels(label or "none") if metric in self._labelled else counter
            self._children[metric, label] = child
        child.inc(amount)

    def late(self, seconds: float) -> None:
        self._lateness.observe(max(0.0, seconds))

    def brain_failed(self) -> None:
        self._failures.inc()

    def frames_lost(self, count: int) -> None:
        self._frames_lost.inc(count)

    def routers(self, states: Iterable[str]) -> None:
        tally = Tally(states)
        for state in _STATES:
            self._routers.labels(state).set(tally[state])

    def api(self, *, up: bool) -> None:
        self._api.set(1 if up else 0)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer http://HOST:PORT/metrics until the function returned is called. Raises OSError."""
        server, thread = prom.start_http_server(port, host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
