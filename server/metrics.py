# SPDX-License-Identifier: Apache-2.0
"""Aerie's own metrics, and the page that has vLLM's beside them.

Every label has a closed set of values, laid out when the registry is made: no request can add a series. That is why
the families of vLLM's HTTP instrumentation are left out: their labels are what clients sent (PYSEC-2026-4325), and ours
tell the same.
"""

import os
from collections.abc import Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from aerie.server.progress import Step
from aerie.server.routes import LABELS

STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
"""`none`: the client left before an answer began."""
REASONS = (
    "overloaded_requests",
    "overloaded_tokens",
    "queue_timeout",
    "request_timeout",
    "invalid_header",
    "not_ready",
    "shutting_down",
    "engine_restarting",
    "engine_dead",
    "rate_limited",
    "unauthorized",
    "too_large",
    "other",
)
BY_STATUS = {401: "unauthorized", 403: "unauthorized", 413: "too_large", 429: "rate_limited"}
LENGTHS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 17)
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
THEIRS_LEFT_OUT = "http_"


class Metrics:
    """A registry of one server, and its metrics by name."""

    def __init__(self, positions: int) -> None:
        """`positions` is K, the most tokens that are drafted for a step; 0 without a draft."""
        own = self.registry = CollectorRegistry()
        self._acceptance = Histogram(
            "aerie:acceptance_length", "Tokens a step of the main model, by request.", buckets=LENGTHS, registry=own
        )
        self._drafted = Counter("aerie:drafted_tokens", "Drafted tokens by position.", ["position"], registry=own)
        self._accepted = Counter("aerie:accepted_tokens", "Accepted ones by position.", ["position"], registry=own)
        self.draft_length = _gauge("aerie:draft_length", "K, the tokens drafted in the last step that drafted.", own)
        self.queue_wait = Histogram(
            "aerie:queue_wait_seconds", "From a request's arrival in the engine to its first step.",
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self._rejected = Counter(
            "aerie:rejected_requests", "Requests not answered, by reason.", ["reason"], registry=own
        )
        self._requests = Counter(
            "aerie:http_requests", "Answers by route and status.", ["route", "status"], registry=own
        )
        self._seconds = Histogram(
            "aerie:http_request_seconds", "From a request to the end of its answer.", ["route"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.in_flight = _gauge("aerie:requests_in_flight", "Requests being answered, probes apart.", own)
        self.ready = _gauge("aerie:ready", "What /readyz tells: 1 or 0.", own)
        self.ready_after = _gauge("aerie:ready_after_seconds", "From start, or from an engine's death, to ready.", own)
        self.engine_deaths = Counter("aerie:engine_deaths", "Engines that died.", registry=own)
        self.lost = Counter("aerie:lost_requests", "Requests that an engine died with.", registry=own)
        self.draft_length.set(positions)
        self._lay_out(positions)

    def _lay_out(self, positions: int) -> None:
        """Make every series at once."""
        for position in range(positions):
            self._drafted.labels(position)
            self._accepted.labels(position)
        for reason in REASONS:
            self._rejected.labels(reason)
        for route in LABELS:
            self._seconds.labels(route)
            for status in STATUS_CLASSES:
                self._requests.labels(route, status)

    def stepped(self, step: Step, draft_length: int) -> None:
        """Count a step of the engine, with K as it is now."""
        for position, (drafted, accepted) in enumerate(zip(step.drafted, step.accepted, strict=True)):
            self._drafted.labels(position).inc(drafted)
            self._accepted.labels(position).inc(accepted)
        self.draft_length.set(draft_length)
        for seconds in step.queued_seconds:
            self.queue_wait.observe(seconds)

    def accepted(self, histogram: Sequence[int]) -> None:
        """Count a request; `histogram[i]` is its number of steps that accepted i drafted tokens."""
        if steps := sum(histogram):
            self._acceptance.observe(1 + sum(i * count for i, count in enumerate(histogram)) / steps)

    def answered(self, route: str, status: int | None, seconds: float, refusal: str | None) -> None:
        """Count an answer. `refusal` is the reason that one of our middlewares gave."""
        self._requests.labels(route, "none" if status is None else f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)
        reason = refusal or BY_STATUS.get(status or 0)
        if reason is not None:
            self._rejected.labels(reason if reason in REASONS else "other").inc()

    def page(self) -> bytes:
        """Everything, in the text format."""
        return generate_latest(_Joined(self.registry))


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, text, registry=registry, multiprocess_mode="mostrecent")


class _Joined(Collector):
    """Our registry and the process's, which is vLLM's: the shared files instead where the operator asked for those."""

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own

    def collect(self) -> Iterable[Metric]:
        """Every family, vLLM's after ours."""
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            shared = CollectorRegistry()
            MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # it enters itself; prometheus-client's own
            registries = [shared]
        else:
            registries = [self._own, REGISTRY]
        for registry in registries:
            yield from (family for family in registry.collect() if not family.name.startswith(THEIRS_LEFT_OUT))
