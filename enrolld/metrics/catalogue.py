"""Every metric there is: its name, its labels with their values, and how the workers' numbers become one.

Names follow prometheus.io: base units, `_total` for what only grows, and labels whose sum means something. A label's
values are a closed set of ours, or names that configuration bounds (realms, issuers, hosts); devices, serials,
addresses and users are never labels, so that nobody can make series by asking.
"""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from ca_core.codes import CODES

__all__ = ["METRICS", "OPERATIONS", "OTHER", "Label", "Merge", "Metric", "Type"]

OTHER = "other"
"""What a label says instead of a value that is not of its set."""

_FEW = 16


class Type(enum.Enum):
    """Prometheus's types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(enum.Enum):
    """How one number is made of those of several workers."""

    SUM = enum.auto()
    """Added up: counters and histograms over all workers that ever were, gauges over those that live."""
    LARGEST = enum.auto()
    """The largest that any worker ever said: for moments."""
    NONE = enum.auto()
    """Not of workers: the worker that is asked says it for all."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label, with its closed set of values, or with the form of those that configuration names."""

    name: str
    values: frozenset[str] | re.Pattern[str]

    def takes(self, value: str) -> bool:
        """Whether it may have this value."""
        if isinstance(self.values, frozenset):
            return value in self.values
        return self.values.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `buckets` are the upper bounds of a histogram's."""

    name: str
    help: str
    type: Type
    labels: tuple[Label, ...] = ()
    merge: Merge = Merge.SUM
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a series has: of a histogram its sum, a count for each bucket, and one beyond them."""
        return len(self.buckets) + 2 if self.type is Type.HISTOGRAM else 1

    def zeros(self) -> Iterator[tuple[str, ...]]:
        """The labels of series that are shown before anything was counted, so that the first count is an increase."""
        sets = [label.values for label in self.labels if isinstance(label.values, frozenset)]
        count = 1
        for values in sets:
            count *= len(values - {OTHER})
        if self.type is not Type.GAUGE and len(sets) == len(self.labels) and count <= _FEW:
            yield from product(*(sorted(values - {OTHER}) for values in sets))


def _closed(name: str, *values: str) -> Label:
    return Label(name, frozenset(values))


_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,79}", re.ASCII)
_REALM = Label("realm", re.compile(r"([a-z0-9][a-z0-9-]{0,30})?", re.ASCII))
_ISSUER = Label("issuer", _NAME)
_HOST = Label("host", re.compile(r"\*|[a-z0-9._:-]{1,255}", re.ASCII))
_WORKER = Label("worker", re.compile(r"[0-9]{1,3}", re.ASCII))
_PROTOCOL = _closed("protocol", "est", "scep", "http")
_EST = ("cacerts", "csrattrs", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen")
_SCEP = ("GetCACaps", "GetCACert", "GetCACertChain", "GetNextCACert", "PKIOperation")
_MESSAGES = ("PKCSReq", "RenewalReq", "CertPoll", "GetCert", "GetCRL")
_PUBLISHED = ("certificate", "crl")
_OPERATION = _closed("operation", *_EST, *_SCEP, *_MESSAGES, *_PUBLISHED, "unknown")
# Not `job`, which is Prometheus's own label of whoever is scraped.
_JOB = _closed(
    "job_name", "lease", "crls", "realms", "server_certificates", "ra_certificates", "audit_heads", "clock", "requests"
)
_WEBHOOK = tuple(code.removeprefix("webhook_") for code in CODES if code.startswith("webhook_"))
_GROUPS = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "x25519", "x448")
_CURVES = ("secp256r1", "secp384r1", "secp521r1")

# 0.5 ms to 10 s, in steps of two to two and a half: a certificate takes about 2 ms, a busy SCEP server half a second.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A key in memory signs in 0.03 ms (P-256) to 1 ms (RSA-3072), one in a HSM in tens of milliseconds.
_SIGNING = (0.00005, 0.0001, 0.00025, *_SECONDS[:11])
_UNITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

METRICS: dict[str, Metric] = {}
"""All of them by name, in the order in which they are shown."""


def _metric(
    kind: Type,
    name: str,
    text: str,
    *labels: Label,
    merge: Merge = Merge.SUM,
    buckets: tuple[float, ...] = (),
) -> Metric:
    made = METRICS[name] = Metric(name, text, kind, labels, merge, buckets)
    return made


def _counter(name: str, text: str, *labels: Label) -> Metric:
    return _metric(Type.COUNTER, name, text, *labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: Label) -> Metric:
    return _metric(Type.HISTOGRAM, name, text, *labels, buckets=buckets)


def _said(name: str, text: str, *labels: Label, kind: Type = Type.GAUGE) -> Metric:
    """One that the worker which is asked says for all."""
    return _metric(kind, name, text, *labels, merge=Merge.NONE)


BUILD_INFO = _said(
    "enrolld_build_info",
    "Always 1; the version of enrolld, and of the OpenSSL it runs with.",
    Label("version", re.compile(r".{1,64}")),
    Label("openssl", re.compile(r".{1,64}")),
)

# --- requests ----------------------------------------------------------------------------------------------------

REQUESTS = _counter(
    "enrolld_requests_total",
    "Requests answered. realm is empty where none was found; protocol http is what is published.",
    _REALM,
    _PROTOCOL,
    _OPERATION,
    _closed("outcome", "issued", "pending", "refused", "overloaded", "error", "gone", "served"),
)
REFUSALS = _counter(
    "enrolld_refusals_total",
    "Refusals by their code, also those without a line in the log, and those of connections below HTTP.",
    _REALM,
    _PROTOCOL,
    _closed("code", *CODES, OTHER),
)
REQUEST_SECONDS = _histogram(
    "enrolld_request_duration_seconds",
    "From a request's head to its answer.",
    _SECONDS,
    _PROTOCOL,
    _OPERATION,
)
HANDSHAKES = _counter(
    "enrolld_tls_handshakes_total",
    "TLS handshakes that ended; version and group are empty for those that failed.",
    _closed("version", "TLSv1.2", "TLSv1.3", "", OTHER),
    _closed("group", *_GROUPS, *_CURVES, "", OTHER),
    _closed("outcome", "ok", "failed"),
)
LEGACY = _said(
    "enrolld_legacy_total",
    "Requests that needed a tolerance of old algorithms.",
    _REALM,
    _closed("what", "sha1", "3des", "des", OTHER),
    kind=Type.COUNTER,
)

WEBHOOK_DELIVERIES = _counter(
    "enrolld_webhook_deliveries_total",
    "Questions to webhooks; endpoint is the realm that asks, and refused a verdict: the other words are failures.",
    Label("endpoint", _REALM.values),
    _closed("outcome", "allowed", "overloaded", *_WEBHOOK),
)

# --- the CA ------------------------------------------------------------------------------------------------------

SIGN_SECONDS = _histogram(
    "enrolld_sign_duration_seconds",
    "One signature by a CA's key over a certificate or a CRL; backend is what holds the key.",
    _SIGNING,
    _closed("backend", "software", "hsm"),
)
COMMIT_SECONDS = _histogram(
    "enrolld_commit_duration_seconds",
    "One durable transaction of the store, with its wait for other processes.",
    _SECONDS,
)
COMMIT_UNITS = _histogram("enrolld_commit_batch_size", "Acts that shared one transaction of the store.", _UNITS)
CERTIFICATES = _said(
    "enrolld_certificates",
    "Certificates of devices in the store; valid means not revoked, expired ones are among them.",
    _REALM,
    _ISSUER,
    _closed("state", "valid", "hold", "revoked"),
)
DEVICES = _said(
    "enrolld_devices",
    "Registered devices.",
    _REALM,
    _closed("state", "expected", "active", "suspended", "retired"),
)
SECRETS = _said(
    "enrolld_secrets",
    "One-time secrets; open ones are neither used nor replaced, and may have expired.",
    _REALM,
    _closed("state", "open", "spent", "void"),
)
CA_NOT_AFTER = _said(
    "enrolld_ca_not_after_timestamp_seconds",
    "When a CA certificate ends.",
    _REALM,
    _ISSUER,
    _closed("role", "root", "issuing"),
)
SERVER_NOT_AFTER = _said(
    "enrolld_server_cert_not_after_timestamp_seconds",
    "When the TLS certificate of a host ends; * is every host that no realm owns.",
    _REALM,
    _HOST,
)
RA_NOT_AFTER = _said(
    "enrolld_ra_cert_not_after_timestamp_seconds",
    "When a realm's SCEP RA certificate ends.",
    _REALM,
)
CRL_NEXT_UPDATE = _said("enrolld_crl_next_update_timestamp_seconds", "When the newest CRL ends (nextUpdate).", _ISSUER)
CRL_PUBLISHED = _said("enrolld_crl_published_timestamp_seconds", "When the newest CRL was made (thisUpdate).", _ISSUER)
CRL_ENTRIES = _said("enrolld_crl_entries", "Certificates that the newest CRL lists.", _ISSUER)

# --- the installation --------------------------------------------------------------------------------------------

AUDIT_EVENTS = _said(
    "enrolld_audit_events_total",
    "Events in the audit trail, of commands as well.",
    Label("action", re.compile(r"[a-z_]{1,20}\.[a-z_]{1,20}", re.ASCII)),
    kind=Type.COUNTER,
)
CLOCK_BEHIND = _said(
    "enrolld_clock_behind_audit_seconds",
    "How far this machine's clock stands before the newest audit event; beyond 60 nothing is issued.",
)
CLOCK_DRIFT = _said(
    "enrolld_clock_drift_seconds",
    "What must be added to this machine's clock to get the database's; beyond 60 either way nothing is issued.",
)
CONNECTIONS = _metric(Type.GAUGE, "enrolld_connections", "Open connections, but for those of the admin listener.")
HANDSHAKES_OPEN = _metric(Type.GAUGE, "enrolld_tls_handshakes_open", "TLS handshakes that have begun and not ended.")
REQUESTS_WAITING = _metric(Type.GAUGE, "enrolld_requests_waiting", "Requests that wait for their turn.")
OVERLOADED = _counter("enrolld_overload_refusals_total", "Requests that found no turn and were told to come again.")
STORE_FREE = _said(
    "enrolld_store_free_ratio", "Share of the disk under the store that is free; below 0.05 nothing is issued."
)
STORE_WAL = _said("enrolld_store_wal_bytes", "Size of the store's write-ahead log.")
JOB_SUCCESS = _metric(
    Type.GAUGE,
    "enrolld_job_last_success_timestamp_seconds",
    "When a periodic job last came to a good end.",
    _JOB,
    merge=Merge.LARGEST,
)
JOB_FAILURES = _counter("enrolld_job_failures_total", "Periodic jobs that failed; the log says why.", _JOB)
LEASE_HELD = _metric(
    Type.GAUGE,
    "enrolld_lease_held",
    "1 where this node does the periodic work of all nodes of the store.",
    _closed("job_name", "chores"),
)
RELOADS = _counter(
    "enrolld_config_reloads_total", "Times that SIGHUP was carried out, or not.", _closed("outcome", "ok", "failed")
)
WORKERS = _metric(Type.GAUGE, "enrolld_workers", "Worker processes that serve.")
WORKER_RESTARTS = _counter("enrolld_worker_restarts_total", "Workers that ended by themselves and were replaced.")
WORKER_MEMORY = _metric(
    Type.GAUGE, "enrolld_worker_resident_memory_bytes", "Resident memory of a worker's place.", _WORKER
)
WORKER_CPU = _counter("enrolld_worker_cpu_seconds_total", "Processor time that a worker's place has used.", _WORKER)
WORKER_FDS = _metric(Type.GAUGE, "enrolld_worker_open_fds", "File descriptors that a worker's place holds.", _WORKER)

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "est": (*_EST, "unknown"),
    "scep": (*_SCEP, *_MESSAGES, "unknown"),
    "http": (*_PUBLISHED, "unknown"),
}
"""The operations of each protocol."""

FAILED_HANDSHAKES = frozenset(
    code for code in CODES if code.startswith(("tls_", "handshakes_")) and code != "tls_protocol_error"
)
"""Codes of connections whose TLS handshake did not come to a good end."""
