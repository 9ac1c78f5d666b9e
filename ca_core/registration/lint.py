"""What pkilint says of the certificates that a profile would issue.

A sample of each kind of key that the profile allows is decided by the rooms that decide, for a device that is made up,
and signed with a key that nobody keeps. pkilint is an extra (`pip install 'enrolld[lint]'`): it brings ten packages
along, which a CA need not carry to run. It is imported only here, when a realm's version is applied or checked.
"""

import datetime as dt
import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.authority.trial import TrialCa
from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.model import DeviceRecord, DeviceState, Means, Operation
from ca_core.registration.document import RealmDocument
from ca_core.registration.examination import examine
from ca_core.registration.examined import Applicant
from ca_core.registration.profile import make_plan
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.sample import sample_names, sample_subject
from ca_core.rows import LintFinding

__all__ = ["can_lint", "lint", "lint_certificate", "sample_certificates"]

_URL = "http://pki.example.com"
_BARE = "DNS:{device.name}"
_Hashing = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_Key = (
    _Hashing | ed25519.Ed25519PrivateKey | mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
)


def can_lint() -> bool:
    """Whether pkilint is installed."""
    return importlib.util.find_spec("pkilint") is not None


def lint(document: RealmDocument, names: list[str], now: dt.datetime) -> list[LintFinding]:
    """What pkilint says of what the profiles `names` of a realm would issue; nothing without pkilint."""
    if not can_lint():
        return []
    found: dict[LintFinding, None] = {}
    for name in names:
        profile = document.profiles[name]
        for sample in sample_certificates(document, name, now):
            if sample.refusal is not None:
                told = f"no sample of it can be made: {sample.refusal.message} {sample.refusal.detail}".strip()
                found[_finding(name, "notice", "enrolld.no_sample", told, allowed=True)] = None
                continue
            try:
                said = lint_certificate(sample.der)
            except Exception as exc:  # noqa: BLE001  # pkilint ends in whatever its parsers raise
                told = f"pkilint can't read what would be issued: {exc}"
                said = [("fatal", "enrolld.unreadable", " ".join(told.split())[:300])]
            for severity, code, message in said:
                found[_finding(name, severity, code, message, allowed=code in profile.lint_allow)] = None
    return list(found)


def _finding(profile: str, severity: str, finding: str, message: str, *, allowed: bool) -> LintFinding:
    return LintFinding(profile=profile, severity=severity, finding=finding, message=message, allowed=allowed)


def lint_certificate(der: bytes) -> list[tuple[str, str, str]]:
    """What speaks against a certificate by RFC 5280 and its kin, as (severity, finding, message); notices are left out.

    The severity is fatal, error or warning.
    """
    from pkilint import loader
    from pkilint.validation import ValidationFindingSeverity

    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "sample")
    return [
        (description.finding.severity.name.lower(), description.finding.code, description.message or "")
        for result in _validator().validate(document.root)
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.WARNING
    ]


@functools.cache
def _validator() -> Any:  # pkilint carries no types
    from pkilint.pkix import certificate, extension, name

    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """A certificate that a profile would issue for a key of kind `key`; or why there is none."""

    key: str
    der: bytes
    refusal: Refusal | None = None


def sample_certificates(document: RealmDocument, name: str, now: dt.datetime) -> Iterator[Sample]:
    """One for each kind of key that the profile `name` allows."""
    profile = document.profiles[name]
    realm = Realm(0, document.name, "active", 0, 0, document)
    applicant = Applicant(_sample_device(document, name), Means.IDEVID)
    ca = _trial_ca(profile.issuer, now.date())
    for kind in dict.fromkeys("rsa-2048" if kind.startswith("rsa") else kind for kind in profile.keys):
        try:
            csr = ParsedCsr.parse(_sample_csr(profile, _sample_key(kind)))
        except Refusal as refusal:
            yield Sample(kind, b"", refusal)
            continue
        allowing = profile if profile.allows_key(kind) else _allowing(profile, kind)
        examined = examine(allowing, realm, applicant, csr, Operation.ENROLL)
        if examined.refusals:
            yield Sample(kind, b"", examined.refusals[0])
            continue
        plan = make_plan(allowing, examined, csr, ca.not_after, now, demo=False, chance=lambda: 0.0)
        yield Sample(kind, ca.issue(plan, _URL))


def _allowing(profile: ProfileDocument, kind: str) -> ProfileDocument:
    """RSA of 2048 bits stands for every size: a large key takes seconds to make, and is written the same way."""
    return msgspec.structs.replace(profile, keys=(*profile.keys, kind))


def _sample_device(document: RealmDocument, profile: str) -> DeviceRecord:
    anchors = [anchor.name for anchor in document.trust if anchor.for_ == "idevid"]
    # Where a device's name alone is a DNS name, devices are called by those.
    is_host = _BARE in document.profiles[profile].names
    name = "sample-1.example.com" if is_host else "sample-1"
    return DeviceRecord(
        id=0,
        realm_id=0,
        name=name,
        username=name,
        profile=profile,
        state=DeviceState.EXPECTED,
        serial_number="SN-0001",
        manufacturer=anchors[0] if anchors else "Sample Manufacturer",
        names=("DNS:sample-1.example.com",),
        owner="Sample Owner",
    )


def _sample_csr(profile: ProfileDocument, key: _Key) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(sample_subject(profile, "x"))
    names = sample_names(profile, "x")
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    digest = hashes.SHA256() if isinstance(key, _Hashing) else None  # the others have their own
    return builder.sign(key, digest).public_bytes(Encoding.DER)


_SAMPLE_KEYS: dict[str, Callable[[], _Key]] = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "p-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}


@functools.cache
def _sample_key(kind: str) -> _Key:
    return _SAMPLE_KEYS[kind]()


@functools.lru_cache(maxsize=8)
def _trial_ca(family: str, day: dt.date) -> TrialCa:
    return TrialCa(family, dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC))
