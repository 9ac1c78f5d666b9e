"""The catalogue: names as Prometheus wants them, closed sets that are the code's, and papers that don't drift."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ca_core.codes import CODES
from ca_core.model import DeviceState
from ca_core.registration.figures import CERTIFICATE_STATES, SECRET_STATES
from enrolld.http_refusal import _PARSER_REFUSALS, OWN_WORDS
from enrolld.metrics import catalogue
from enrolld.metrics.catalogue import METRICS, OPERATIONS, OTHER, Label, Merge, Metric, Type
from enrolld.tls import StreamReason
from est_server import handlers as est
from scep_server import handlers as scep
from scep_server.operations import NAMES

HOUSE = Path(__file__).resolve().parents[3]
PROMETHEUS = HOUSE / "packaging" / "prometheus"
UNITS = ("seconds", "bytes")
NEVER_LABELS = {"device", "serial", "subject", "ip", "address", "source", "user", "user_name", "request_id", "name"}


def label_of(metric: Metric, name: str) -> Label:
    return next(label for label in metric.labels if label.name == name)


def values_of(metric: Metric, name: str) -> frozenset[str]:
    values = label_of(metric, name).values
    assert isinstance(values, frozenset)
    return values


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_name_follows_the_conventions_of_prometheus(metric: Metric) -> None:
    name = metric.name
    assert re.fullmatch(r"enrolld_[a-z0-9]+(_[a-z0-9]+)*", name)
    assert name.endswith("_total") == (metric.type is Type.COUNTER)
    assert not re.search(r"milli|micro|minute|hour|_ms|kilo|percent", name), "base units"
    assert ("timestamp" in name) <= name.endswith("_timestamp_seconds")
    assert ("duration" in name) <= name.endswith("_duration_seconds")
    assert not name.endswith(("_count", "_sum", "_bucket", "_created"))
    assert metric.help.endswith(".")
    assert len(metric.help) < 120
    names = [label.name for label in metric.labels]
    assert len(set(names)) == len(names)
    assert not NEVER_LABELS & set(names), "whoever asks could make series"
    assert not {"le", "job", "instance"} & set(names), "these are Prometheus's own"


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_buckets_rise_and_only_histograms_have_them(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.type is Type.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_a_request_is_measured_from_half_a_millisecond_to_ten_seconds() -> None:
    assert (catalogue.REQUEST_SECONDS.buckets[0], catalogue.REQUEST_SECONDS.buckets[-1]) == (0.0005, 10.0)


def test_operations_are_those_of_the_protocols_and_of_publication() -> None:
    assert set(OPERATIONS["est"]) == {*est.OPERATIONS, *est.NOT_SERVED, "unknown"}
    assert set(OPERATIONS["scep"]) == {*scep.OPERATIONS, *NAMES.values(), "unknown"}
    published = set(re.findall(r'name="(\w+)"', (HOUSE / "enrolld" / "publication.py").read_text()))
    assert set(OPERATIONS["http"]) == {*published, "unknown"}
    assert values_of(catalogue.REQUESTS, "operation") == {word for words in OPERATIONS.values() for word in words}
    assert values_of(catalogue.REQUESTS, "protocol") == set(OPERATIONS)


def test_codes_are_those_that_can_be_explained() -> None:
    assert values_of(catalogue.REFUSALS, "code") == {*CODES, OTHER}
    reasons = {reason.value for reason in StreamReason} | {reason for reason, _ in OWN_WORDS.values()}
    reasons |= {row[3] for row in _PARSER_REFUSALS}
    assert reasons <= values_of(catalogue.REFUSALS, "code")


def test_failed_handshakes_are_those_of_the_transport_before_it_is_open() -> None:
    early = {reason.value for reason in StreamReason if reason.value.startswith("tls_")}
    assert early - {"tls_protocol_error"} <= catalogue.FAILED_HANDSHAKES
    assert "write_stalled" not in catalogue.FAILED_HANDSHAKES


def test_states_are_those_of_the_store() -> None:
    assert values_of(catalogue.DEVICES, "state") == set(DeviceState)
    assert values_of(catalogue.CERTIFICATES, "state") == set(CERTIFICATE_STATES)
    assert values_of(catalogue.SECRETS, "state") == set(SECRET_STATES)


def test_jobs_are_those_that_are_done() -> None:
    done = set(re.findall(r'self\._try\(\s*"(\w+)"', (HOUSE / "enrolld" / "chores.py").read_text()))
    assert values_of(catalogue.JOB_FAILURES, "job_name") == done


def test_every_audit_action_of_the_core_has_the_form_of_its_label() -> None:
    sources = "".join(path.read_text() for path in (HOUSE / "ca_core").rglob("*.py"))
    actions = set(re.findall(r'"([a-z_]+\.[a-z_]+)"', sources)) - {"scep.allow_sha1", "scep.allow_3des"}
    assert {"certificate.issued", "trust.added", "device.suspended"} <= actions
    assert [action for action in actions if not label_of(catalogue.AUDIT_EVENTS, "action").takes(action)] == []


def test_zeros_are_shown_of_what_has_few_series_that_are_all_known() -> None:
    assert set(catalogue.RELOADS.zeros()) == {("ok",), ("failed",)}
    assert list(catalogue.WORKER_RESTARTS.zeros()) == [()]
    assert list(catalogue.REQUESTS.zeros()) == []
    assert list(catalogue.JOB_SUCCESS.zeros()) == [], "a job that never succeeded did not do so in 1970"


def table() -> str:
    """What the README says of the metrics."""
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label.name}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type.value} | {labels} | {metric.help} |")
    return "\n".join(lines)


def test_the_readme_lists_every_metric_as_it_is() -> None:
    readme = (HOUSE / "README.md").read_text()
    found = readme.partition("<!-- metrics -->\n")[2].partition("\n\n")[0]
    assert found == table(), "put this table there:\n" + table()


def _named(text: str) -> set[str]:
    """The names of metrics in expressions, without what Prometheus adds to a histogram's."""
    names = set(re.findall(r"\benrolld_[a-z0-9_]+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name not in METRICS else name for name in names}


@pytest.mark.parametrize("path", [PROMETHEUS / "enrolld.rules.yml", PROMETHEUS / "enrolld-dashboard.json"])
def test_every_metric_that_an_alert_or_a_panel_names_exists(path: Path) -> None:
    named = _named(path.read_text())
    assert len(named) > 10
    assert named - set(METRICS) == set()


def _labels_in(text: str) -> list[tuple[str, str]]:
    """Metrics and the labels that expressions choose them by, `name{label="x"}`."""
    found: list[tuple[str, str]] = []
    for name, chosen in re.findall(r"\b(enrolld_[a-z0-9_]+)\{([^}]*)\}", text):
        found += [(name, label) for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", chosen)]
    return found


@pytest.mark.parametrize("path", [PROMETHEUS / "enrolld.rules.yml", PROMETHEUS / "enrolld-dashboard.json"])
def test_every_label_that_an_expression_chooses_by_exists(path: Path) -> None:
    text = path.read_text().replace('\\"', '"')
    for name, label in _labels_in(text):
        metric = METRICS[name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)]
        assert label in {*(one.name for one in metric.labels), "instance", "job", "le"}, name


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    text = (PROMETHEUS / "enrolld.rules.yml").read_text()
    alerts = re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        assert re.match(r"Enrolld[A-Z]\w+\n", alert)
        for needed in ("expr:", "for:", "severity:", "summary:", "description:"):
            assert needed in alert, alert.splitlines()[0]


def test_the_dashboard_is_json_whose_panels_all_ask_something() -> None:
    dashboard: dict[str, Any] = json.loads((PROMETHEUS / "enrolld-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) >= 8
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["title"]
        assert all(target["expr"] for target in panel["targets"])
        assert panel["targets"]


def test_what_one_worker_says_for_all_is_never_added_up() -> None:
    said = {metric.name for metric in METRICS.values() if metric.merge is Merge.NONE}
    assert {"enrolld_certificates", "enrolld_devices", "enrolld_crl_entries", "enrolld_legacy_total"} <= said
