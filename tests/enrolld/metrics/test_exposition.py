"""/metrics as Prometheus asks for it: its formats, its methods, and what it says when something is missing."""

import logging
from collections.abc import AsyncIterator, Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ca_core.core import Core
from ca_core.errors import Unavailable
from enrolld.metrics import exposition
from enrolld.metrics.catalogue import METRICS, REQUESTS, Type
from enrolld.metrics.counts import Counts, Key, Numbers
from enrolld.metrics.meter import WorkerMeter
from tests.helpers.core import ME, OTHER_HOST, enrolled

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def meter() -> WorkerMeter:
    return WorkerMeter(Counts(), lambda: 1000.0)


@pytest.fixture
async def client(core: Core, meter: WorkerMeter) -> AsyncIterator[Client]:
    await core.server_certificates.ensure(("localhost",))

    async def totals() -> Mapping[Key, Numbers]:
        return meter.counts.all()

    app = web.Application()
    exposition.add_routes(app, core, "1.2.3", totals)
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def samples(client: Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    answer = await client.get("/metrics")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parse_text(await answer.text()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def test_every_metric_has_its_help_and_its_type_before_anything_was_counted(client: Client) -> None:
    text = await (await client.get("/metrics")).text()
    for metric in METRICS.values():
        assert f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.type.value}\n" in text
    assert text.count("# TYPE ") == len(METRICS)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        pytest.param(None, PLAIN, id="nothing-asked"),
        pytest.param("*/*", PLAIN, id="anything"),
        pytest.param("text/plain;version=0.0.4", PLAIN, id="prometheus-1"),
        pytest.param("text/html", PLAIN, id="a-browser"),
        pytest.param(PROMETHEUS_3, "application/openmetrics-text; version=1.0.0;", id="prometheus-3"),
        pytest.param("application/openmetrics-text", "application/openmetrics-text; version=1.0.0;", id="openmetrics"),
        pytest.param("application/openmetrics-text;version=9.x evil", PLAIN, id="a-version-that-is-none"),
        pytest.param('application/openmetrics-text;version=2"', PLAIN, id="junk"),
        pytest.param("application/openmetrics-text;version=1.0.0.\u00e9", PLAIN, id="not-ascii"),
    ],
)
async def test_the_format_is_one_that_was_asked_for(client: Client, accept: str | None, content_type: str) -> None:
    answer = await client.get("/metrics", headers={"Accept": accept} if accept else {})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(content_type)
    assert answer.headers["Cache-Control"] == "no-store"
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    assert {family.name.removesuffix("_total") for family in parse(await answer.text())} >= {
        name.removesuffix("_total") for name in METRICS
    }


async def test_head_says_as_much_without_the_body_and_nothing_else_is_taken(client: Client) -> None:
    full, head = await client.get("/metrics"), await client.head("/metrics")
    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Type"] == full.headers["Content-Type"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert (await client.request(method, "/metrics")).status == 405


async def test_what_was_counted_stands_there(client: Client, meter: WorkerMeter) -> None:
    meter.requested("default", "est", "simpleenroll", "issued", 0.002)
    meter.requested("default", "est", "simpleenroll", "issued", 0.3)
    meter.refused("default", "est", "secret_wrong")
    meter.refused("", "http", "tls_not_tls")
    meter.job_done("crls")
    meter.lease(is_held=True)
    found = await samples(client)
    asked = (("operation", "simpleenroll"), ("protocol", "est"))
    assert found["enrolld_requests_total"] == {
        (("operation", "simpleenroll"), ("outcome", "issued"), ("protocol", "est"), ("realm", "default")): 2
    }
    assert found["enrolld_request_duration_seconds_count"] == {asked: 2}
    assert found["enrolld_request_duration_seconds_sum"] == {asked: pytest.approx(0.302)}
    buckets = found["enrolld_request_duration_seconds_bucket"]
    told = {dict(labels)["le"]: value for labels, value in buckets.items()}
    assert (told["0.001"], told["0.0025"], told["0.25"], told["0.5"], told["+Inf"]) == (0, 1, 1, 2, 2)
    assert sum(found["enrolld_refusals_total"].values()) == 2
    assert found["enrolld_tls_handshakes_total"] == {(("group", ""), ("outcome", "failed"), ("version", "")): 1}
    assert found["enrolld_job_last_success_timestamp_seconds"] == {(("job_name", "crls"),): 1000}
    assert found["enrolld_lease_held"] == {(("job_name", "chores"),): 1}
    assert found["enrolld_job_failures_total"][(("job_name", "lease"),)] == 0


async def test_what_is_in_the_store_stands_there(client: Client, core: Core) -> None:
    one = await enrolled(core, "one")
    await core.certificates.revoke(one.serial, actor=ME)
    found = await samples(client)
    key = (("issuer", "default-ec-1"), ("realm", "default"))
    assert found["enrolld_certificates"][(*key, ("state", "revoked"))] == 1
    assert found["enrolld_devices"][("realm", "default"), ("state", "active")] == 1
    assert found["enrolld_secrets"][("realm", "default"), ("state", "spent")] == 1
    assert found["enrolld_audit_events_total"][(("action", "certificate.issued"),)] == 1
    assert found["enrolld_crl_entries"][(("issuer", "default-ec-1"),)] == 0
    ends = found["enrolld_ca_not_after_timestamp_seconds"]
    assert ends[("issuer", "default-root-1"), ("realm", "default"), ("role", "root")] > 2e9
    shown = found["enrolld_server_cert_not_after_timestamp_seconds"]
    assert {tuple(value for _, value in labels) for labels in shown} == {("*", "default"), (OTHER_HOST, "other")}
    (build,) = found["enrolld_build_info"]
    assert dict(build)["version"] == "1.2.3"
    assert dict(build)["openssl"][0].isdigit()


async def test_no_label_has_a_value_that_its_metric_does_not_know(client: Client, core: Core) -> None:
    await enrolled(core, "one", realm="other")
    for family in parse_text(await (await client.get("/metrics")).text()):
        for sample in family.samples:
            metric = METRICS.get(sample.name) or METRICS[sample.name.rpartition("_")[0]]
            for label in metric.labels:
                assert label.takes(sample.labels[label.name]), sample


async def test_without_the_store_what_was_counted_is_still_told(
    client: Client, core: Core, meter: WorkerMeter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise Unavailable("the database can't be read")

    monkeypatch.setattr(core, "figures", broken)
    meter.refused("default", "est", "secret_wrong")
    for _ in range(5):
        found = await samples(client)
        assert sum(found["enrolld_refusals_total"].values()) == 1
        assert "enrolld_devices" not in found
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1, "not a line for each scrape"


async def test_a_supervisor_that_does_not_answer_is_told(core: Core) -> None:
    async def totals() -> Mapping[Key, Numbers]:
        raise TimeoutError

    app = web.Application()
    exposition.add_routes(app, core, "1", totals)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/metrics")
        assert (answer.status, answer.headers["Cache-Control"]) == (503, "no-store")


def test_the_type_of_each_family_is_that_of_the_catalogue() -> None:
    kinds = {metric.name: metric.type for metric in METRICS.values()}
    for family in exposition.families({}, []):
        name = family.name if family.name in kinds else f"{family.name}_total"
        assert Type(family.type) is kinds[name]
    assert REQUESTS.name in kinds
