"""What lists and commands answer: the fields are a contract (JSON), and are only ever added.

Times are RFC 3339 in UTC, serials and fingerprints lower-case hex. `id` is opaque; a list goes on after it.
"""

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all rows."""


class HandedSecret(Row, frozen=True, kw_only=True):
    """A secret just made: shown once. It is the EST Basic password and the SCEP challengePassword."""

    device: str
    realm: str
    profile: str
    username: str
    secret: str
    expires: str

    def __repr__(self) -> str:
        return f"HandedSecret(device={self.device!r}, ...)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # what rich prints instead of the repr
        return [("device", self.device)]


class DeviceRow(Row, frozen=True, kw_only=True):
    """A registered device.

    `not_after` is its newest certificate's end, `expected_renewal_at` when it should renew that; both None while it has
    none to renew. `overdue`: it should have, and was not seen since.
    """

    id: str
    device: str
    realm: str
    profile: str | None
    state: str
    serial_number: str | None
    manufacturer: str | None
    names: list[str]
    owner: str | None
    created_at: str
    last_seen_at: str | None
    not_after: str | None
    expected_renewal_at: str | None
    overdue: bool
    replaced_by: str | None


class ActRow(Row, frozen=True, kw_only=True):
    """Something that was done with a device, or that it did: `act` is an audit event's action, renewals told apart.

    Who revoked a certificate (`actor` None) stands in the audit trail.
    """

    at: str
    act: str
    actor: str | None
    serial: str | None
    details: Any


class ImportFault(Row, frozen=True, kw_only=True):
    """Something wrong in a list of devices; `column` is None when it is the line as a whole."""

    line: int
    column: str | None
    code: str
    message: str
    remedy: str


class Import(Row, frozen=True, kw_only=True):
    """A list of devices that was imported, or with `planned` would be."""

    realm: str
    file: str
    sha256: str
    devices: int
    secrets: str | None
    planned: bool


class AttemptRow(Row, frozen=True, kw_only=True):
    """One request, answered or refused."""

    id: str
    at: str
    request_id: str
    realm: str | None
    device: str | None
    source: str
    protocol: str
    operation: str
    outcome: str
    code: str | None
    message: str | None
    detail: str | None
    remedy: str | None
    serial: str | None
    key: str | None
    signature_hash: str | None
    tls: str | None
    transaction_id: str | None
    claimed: str | None
    claimed_serial: str | None
    key_sha256: str | None


class Outlook(Row, frozen=True, kw_only=True):
    """What would become of a request, were it approved and asked for again now.

    `outcome` is issued, refused (`code`, `message`, `remedy` say why), later (refused, but that passes by itself) or
    unknown. `issuer` to `dropped` are of what would be issued: `dropped` is what the request asks for and would not
    get. `warnings` are for whoever approves it.
    """

    outcome: str
    issuer: str | None = None
    subject: str | None = None
    names: list[str] = []
    not_after: str | None = None
    dropped: list[str] = []
    code: str | None = None
    message: str | None = None
    remedy: str | None = None
    warnings: list[str] = []


class RequestRow(Row, frozen=True, kw_only=True):
    """A request that waits or waited for an operator. `expires`: until when it waits, or its approval holds.

    `device` is what it calls itself, unless `means` (secret, idevid) proves it; `device_state` is None when no such
    device is registered.
    """

    id: str
    realm: str
    profile: str
    device: str
    subject: str
    names: list[str]
    protocol: str
    state: str
    requested_at: str
    expires: str
    means: str
    key: str
    key_sha256: str
    source: str
    request_id: str
    decided_at: str | None
    decided_by: str | None
    reason: str | None
    device_state: str | None
    outlook: Outlook | None = None
    """Of a single request that is pending or approved; None in lists."""


class Why(Row, frozen=True, kw_only=True):
    """Why a device is where it is: one sentence, then what happened, newest first.

    `state` is unknown, and `realm` may be None, for a caller that is no registered device.
    """

    device: str | None
    realm: str | None
    state: str
    sentence: str
    timeline: list[AttemptRow]


class CertificateRow(Row, frozen=True, kw_only=True):
    """An issued certificate."""

    id: str
    serial: str
    issuer: str
    realm: str
    profile: str | None
    device: str | None
    subject: str
    names: list[str]
    not_before: str
    not_after: str
    status: str
    revoked_at: str | None
    reason: str | None
    fingerprint_sha256: str
    key: str
    protocol: str


class Revocation(Row, frozen=True, kw_only=True):
    """A revocation that is durable. `sequence` is its place in the issuer's count; see `Crls.covers`."""

    certificate: CertificateRow
    issuer: str
    sequence: int


class Replacement(Row, frozen=True, kw_only=True):
    """What became of a device that was replaced or retired.

    `superseded` is how many valid certificates prove it no more, revoked or not.
    """

    device: DeviceRow
    superseded: int
    revocations: list[Revocation]


class DeviceChange(Row, frozen=True, kw_only=True):
    """A device whose record was changed: each fact that became another, as [before, after].

    `carried_by` has the serials of its certificates that still hold and carry a name that was taken away.
    """

    device: DeviceRow
    changed: dict[str, list[Any]]
    carried_by: list[str]


class ClockStep(Row, frozen=True, kw_only=True):
    """That an operator has accepted `at` some time that the clock went back from `back_from`."""

    at: str
    back_from: str


class ClockState(Row, frozen=True, kw_only=True):
    """This machine's clock, and what stands against it.

    `database_clock` is None where the store has none. `newest_event` is the newest that counts: while the clock stands
    more than a minute before it (`behind`) or from the database's (`off`), nothing is issued. `events`, `certificates`
    (of devices, not revoked) and `secrets` (open ones) say how many are dated later than now; `crls` names the issuers
    whose CRL is.
    """

    clock: str
    database_clock: str | None
    newest_event: str | None
    behind: bool
    off: bool
    events: int
    certificates: int
    secrets: int
    crls: list[str]
    accepted: ClockStep | None


class CrlRow(Row, frozen=True, kw_only=True):
    """The newest CRL of an issuer."""

    id: str
    issuer: str
    realm: str
    number: int
    this_update: str
    next_update: str
    entries: int


class IssuerRow(Row, frozen=True, kw_only=True):
    """A CA certificate. `parent` is the issuer that signed it, None of a root."""

    id: str
    issuer: str
    realm: str
    family: str
    generation: int
    state: str
    subject: str
    not_before: str
    not_after: str
    fingerprint_sha256: str
    key: str
    parent: str | None


class RealmRow(Row, frozen=True, kw_only=True):
    """A realm and the version of its document in force.

    `root` is the CA at the top of it, by its issuer name: another realm's where it stands under a shared root.
    """

    id: str
    realm: str
    state: str
    version: int
    hosts: list[str]
    public_url: str | None
    profiles: list[str]
    root: str


class TrustRow(Row, frozen=True, kw_only=True):
    """A trust anchor of a realm. `devices` are registered under its name, and not retired: it speaks for them."""

    id: str
    realm: str
    name: str
    for_: str = msgspec.field(name="for")
    subject: str
    fingerprint_sha256: str
    not_after: str
    devices: int


class Finding(Row, frozen=True, kw_only=True):
    """Something that `check` found. `severity` is error, warning or info."""

    severity: str
    code: str
    message: str
    remedy: str


class LintFinding(Row, frozen=True, kw_only=True):
    """What pkilint says of a profile's certificates; `allowed` when the profile's `lint_allow` names it."""

    profile: str
    severity: str
    finding: str
    message: str
    allowed: bool


class ProfileRow(Row, frozen=True, kw_only=True):
    """A profile of a realm, or a preset (then `realm` is None and `about` says what it is for)."""

    id: str
    profile: str
    realm: str | None
    about: str | None
    issuer: str
    validity: str
    keys: list[str]
    subject: list[str]
    names: list[str]
    extended_key_usages: list[str]


class RealmStatus(Row, frozen=True, kw_only=True):
    """Counts of one realm."""

    realm: str
    devices: dict[str, int]
    certificates: dict[str, int]


class ToleranceRow(Row, frozen=True, kw_only=True):
    """How often requests needed a tolerance of old algorithms, and when the last one did."""

    realm: str
    tolerance: str
    uses: int
    last_at: str


class Status(Row, frozen=True, kw_only=True):
    """The installation at a glance."""

    version: str
    store: str
    demo: bool
    public_url: str
    realms: list[RealmStatus]
    crls: list[CrlRow]
    tolerances: list[ToleranceRow]


class AuditRow(Row, frozen=True, kw_only=True):
    """One event of the audit trail. `details` is what its action tells, or the text where that is no JSON."""

    id: str
    at: str
    action: str
    actor: str
    realm: str | None
    device: str | None
    serial: str | None
    request_id: str | None
    details: Any
    writer: str
    sequence: int
    hash: str | None


class HeadRow(Row, frozen=True, kw_only=True):
    """A common head of the audit trail."""

    number: int
    at: str
    digest: str


class AuditFinding(Row, frozen=True, kw_only=True):
    """Something in the audit trail that is not as it was written. `code` is stable, `message` says what it is."""

    code: str
    writer: str | None
    sequence: int | None
    head: int | None
    message: str


class Verdict(Row, frozen=True, kw_only=True):
    """What verifying the audit trail showed.

    `uncovered` is how many events no head covers (yet); `findings` are the first of `findings_total`; `limits` says in
    sentences what could not be verified; of the heads given by the operator, `kept_found` were there, and `kept_up_to`
    is the number of the last of them.
    """

    ok: bool
    events: int
    writers: int
    heads: int
    last_head: HeadRow | None
    uncovered: int
    kept_given: int
    kept_found: int
    kept_up_to: int | None
    findings: list[AuditFinding]
    findings_total: int
    limits: list[str]
