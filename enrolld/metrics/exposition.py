"""`/metrics` on the admin listener, in the formats that Prometheus asks for."""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ca_core.errors import CoreError
from ca_core.limits import Buckets
from enrolld.metrics.catalogue import METRICS, Metric, Type
from enrolld.metrics.counts import Key, Numbers
from enrolld.metrics.gauges import Said, about_build, about_store

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["add_routes", "families"]

_LOG = logging.getLogger(__name__)

# prometheus_client repeats the version that is asked for, whatever that says.
_ACCEPTED = re.compile(
    r"\s*(application/openmetrics-text|text/plain)"
    r"(\s*;\s*(version=(0\.0\.1|0\.0\.4|1\.0\.0)|escaping=[a-z0-9-]+|charset=utf-8|q=[01](\.[0-9]+)?))*\s*",
    re.ASCII,
)


def add_routes(
    app: web.Application, core: "Core", version: str, totals: Callable[[], Awaitable[Mapping[Key, Numbers]]]
) -> None:
    """`/metrics`; `totals` are the sums of all workers, or TimeoutError."""
    complaints = Buckets(rate=1 / 60, burst=1, clock=time.monotonic)

    async def metrics(request: web.Request) -> web.Response:
        try:
            counted = await totals()
        except TimeoutError:
            sentence = "The supervisor does not answer; /healthz and the log say more.\n"
            return web.Response(status=503, text=sentence, headers=_NOT_KEPT)
        said = list(about_build(version))
        try:
            said += await about_store(core)
        except CoreError:
            # What is missing then is an alert by itself, and what is counted is needed more than ever.
            if complaints.take("store"):
                _LOG.exception("the store says nothing for /metrics")
        encode, content_type = choose_encoder(_accepted(request.headers.get("Accept", "")))
        body = encode(_Collected(families(counted, said)))
        return web.Response(body=body, headers={**_NOT_KEPT, "Content-Type": content_type})

    app.router.add_get("/metrics", metrics)


_NOT_KEPT = {"Cache-Control": "no-store"}


def families(counted: Mapping[Key, Numbers], said: Iterable[Said]) -> Iterator[Family]:
    """Every metric of the catalogue with all its series, in a fixed order."""
    rows: dict[str, dict[tuple[str, ...], Numbers]] = {name: {} for name in METRICS}
    for metric in METRICS.values():
        rows[metric.name].update(dict.fromkeys(metric.zeros(), (0.0,) * metric.width))
    for (name, labels), numbers in counted.items():
        rows[name][labels] = numbers
    for metric, labels, number in said:
        rows[metric.name][labels] = (float(number),)
    for metric in METRICS.values():
        yield _family(metric, rows[metric.name])


def _family(metric: Metric, rows: Mapping[tuple[str, ...], Numbers]) -> Family:
    labels = [label.name for label in metric.labels]
    if metric.type is Type.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for values in sorted(rows):
            total, *counts = rows[values]
            histogram.add_metric(list(values), _cumulative(metric, counts), total)
        return histogram
    kind = CounterMetricFamily if metric.type is Type.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=labels)
    for values in sorted(rows):
        family.add_metric(list(values), rows[values][0])
    return family


def _cumulative(metric: Metric, counts: list[float]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    below = 0.0
    for bound, count in zip((*map(str, metric.buckets), "+Inf"), counts, strict=True):
        below += count
        found.append((bound, below))
    return found


class _Collected(Collector):
    """What the encoders take: something that is asked for its families."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._found = found

    def collect(self) -> Iterable[Family]:
        """The families."""
        return self._found


def _accepted(header: str) -> str:
    """The header without what no Prometheus sends."""
    return ",".join(part for part in header.split(",") if _ACCEPTED.fullmatch(part))
