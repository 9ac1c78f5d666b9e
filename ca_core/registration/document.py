"""A realm's document: what an operator writes, and the validated value that the rooms use.

A document is TOML on the outside (`realm export`, `realm apply`) and JSON in the store, one version after the other. An
unknown key is an error that names the nearest one, and every fault that can be told at once is told at once.
"""

import datetime as dt
import re
import tomllib
from typing import Any, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ca_core.errors import BadKey, OperatorError
from ca_core.names import parse_duration, parse_host, parse_realm_name
from ca_core.public_key import check_authority_key
from ca_core.registration.admission.ways import AdmissionDocument, admission_faults
from ca_core.registration.document_shape import MOST_ENTRIES, MOST_FAULTS, shaped, text_fault
from ca_core.registration.profile_document import ProfileDocument, profile_faults


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    pass


class EstDocument(_Document, frozen=True, kw_only=True):
    """How the realm speaks EST. `profile` serves requests whose label names none."""

    profile: str = "device"
    channel_binding: Literal["optional", "required"] = "optional"


class ScepDocument(_Document, frozen=True, kw_only=True):
    """How the realm speaks SCEP. `profile` serves requests whose label names none; its issuer must be rsa. A realm
    without a profile called scep, and with no other named here, does not speak it.

    `answer_chain` sends the CA certificates along with a device's own. The rest are tolerances of what old devices
    do: `read_des` reads requests in single DES, whose secret anybody on the way may have read; `allow_3des` and
    `allow_sha1` read requests in these, and answer in them.
    """

    enabled: bool = True
    profile: str = "scep"
    answer_chain: bool = False
    read_des: bool = False
    allow_3des: bool = True
    allow_sha1: bool = True


class TrustDocument(_Document, frozen=True, kw_only=True, rename={"for_": "for"}):
    """One trust anchor, a CA certificate in PEM. `name` is what `device add --manufacturer` refers to."""

    name: str
    for_: Literal["idevid", "tls"] = "idevid"
    pem: str

    def certificate(self) -> x509.Certificate:
        """The anchor. Raises ValueError when the PEM can't be read."""
        return x509.load_pem_x509_certificate(self.pem.encode())


class RealmDocument(_Document, frozen=True, kw_only=True):
    """A device line. `public_url` is where CRLs and CA certificates are fetched, None for the node's own."""

    name: str
    hosts: tuple[str, ...] = ()
    public_url: str | None = None
    ask_client_certificate: bool = True
    retry_window: str = "24h"
    secret_lifetime: str = "7d"  # noqa: S105  # a duration
    est: EstDocument = EstDocument()
    scep: ScepDocument = ScepDocument()
    admission: AdmissionDocument = AdmissionDocument()
    profiles: dict[str, ProfileDocument] = msgspec.field(default_factory=dict)
    trust: tuple[TrustDocument, ...] = ()

    @property
    def retry(self) -> dt.timedelta:
        """How long a spent secret still answers the key that it served."""
        return parse_duration(self.retry_window)

    @property
    def speaks_scep(self) -> bool:
        """Whether SCEP is served."""
        return self.scep.enabled and self.scep.profile in self.profiles


def default_document(
    name: str, hosts: tuple[str, ...], public_url: str | None, *, read_des: bool = False
) -> RealmDocument:
    """What a new realm begins with: a profile for EST under the ec issuer, one for SCEP under the rsa issuer."""
    profiles = {"device": ProfileDocument(issuer="ec"), "scep": ProfileDocument(issuer="rsa")}
    scep = ScepDocument(read_des=read_des)
    return validated(RealmDocument(name=name, hosts=hosts, public_url=public_url, scep=scep, profiles=profiles))


def to_json(document: RealmDocument) -> str:
    """The document as the store keeps it."""
    return msgspec.json.encode(document).decode()


def from_json(text: str) -> RealmDocument:
    """A document from the store."""
    return msgspec.json.decode(text, type=RealmDocument)


def to_toml(document: RealmDocument) -> str:
    """The document as an operator edits it."""
    import tomli_w  # only `realm export` writes TOML

    return tomli_w.dumps(_without_none(msgspec.to_builtins(document)), multiline_strings=True)


def _without_none(value: Any) -> Any:
    """TOML has no word for nothing."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def profile_toml(name: str, profile: ProfileDocument) -> str:
    """A profile as it stands in a realm's document, without what it leaves at its default."""
    import tomli_w  # likewise

    default = msgspec.to_builtins(ProfileDocument())
    built = {key: value for key, value in msgspec.to_builtins(profile).items() if value != default[key]}
    return tomli_w.dumps({"profiles": {name: _without_none(built)}}, multiline_strings=True)


def parse_toml(text: str) -> RealmDocument:
    """The document in a TOML text. Raises `OperatorError`, whose message names each fault with its key."""
    fault = text_fault(text)
    if fault is not None:
        raise _invalid([fault])
    try:
        raw = tomllib.loads(text)
    except ValueError as exc:  # also for a number of more digits than anything has
        raise OperatorError("document_invalid", f"the file is not TOML: {exc}", "mend that place") from exc
    fitting, faults = shaped(raw, RealmDocument)
    try:
        document = msgspec.convert({"name": _NAMELESS, **fitting}, RealmDocument)
    except msgspec.ValidationError as exc:
        raise _invalid([*faults, str(exc)]) from exc
    return _validated(document, faults)


def validated(document: RealmDocument) -> RealmDocument:
    """The document, when every value in it makes sense. Raises `OperatorError` with every fault."""
    return _validated(document, [])


def _validated(document: RealmDocument, faults: list[str]) -> RealmDocument:

    def check(path: str, parse: Any, value: str) -> None:
        try:
            parse(value)
        except OperatorError as exc:
            faults.append(f"{path}: {exc.message} ({exc.remedy})")

    for key in ("hosts", "profiles", "trust"):
        if len(getattr(document, key)) > MOST_ENTRIES:
            raise _invalid([*faults, f"{key}: more than {MOST_ENTRIES} entries"])
    check("name", parse_realm_name, document.name)
    hosts: list[str] = []
    for index, host in enumerate(document.hosts):
        check(f"hosts[{index}]", lambda text: hosts.append(parse_host(text)), host)
    faults += [f"hosts: '{host}' stands twice" for host in sorted(set(hosts)) if hosts.count(host) > 1]
    if "localhost" in hosts:
        faults.append("hosts: localhost is the shared host (use a name of the realm's own)")
    check("retry_window", parse_duration, document.retry_window)
    check("secret_lifetime", parse_duration, document.secret_lifetime)
    if document.public_url is not None and not _is_http_url(document.public_url):
        faults.append("public_url: not an http URL without path (use http://pki.example.com)")
    faults += admission_faults(document.admission)
    if not document.profiles and not any(fault.startswith("profiles:") for fault in faults):
        faults.append("profiles: a realm needs at least one profile")
    for name, profile in document.profiles.items():
        faults += profile_faults(f"profiles.{name}", name, profile)
    if document.profiles and document.est.profile not in document.profiles:
        faults.append(f"est.profile: no profile '{document.est.profile}' (have: {', '.join(document.profiles)})")
    if document.profiles:
        faults += _scep_faults(document)
    seen: set[object] = set()
    for index, anchor in enumerate(document.trust):
        if not is_trust_name(anchor.name):
            faults.append(
                f"trust[{index}].name: '{ascii(anchor.name[:80])[1:-1]}' can't be a name (up to 64 characters)"
            )
        if anchor.name in seen:
            faults.append(f"trust[{index}].name: '{ascii(anchor.name[:80])[1:-1]}' stands twice (names must differ)")
        seen.add(anchor.name)
        fault = anchor_fault(anchor)
        if fault:
            faults.append(f"trust[{index}].pem: {fault}")
            continue
        # Under two names a certificate would prove two manufacturers.
        if (anchor.for_, anchor.certificate()) in seen:
            faults.append(f"trust[{index}].pem: the certificate stands twice (once is enough)")
        seen.add((anchor.for_, anchor.certificate()))
    if faults:
        raise _invalid(faults)
    return msgspec.structs.replace(document, hosts=tuple(hosts))


def _scep_faults(document: RealmDocument) -> list[str]:
    name = document.scep.profile
    profile = document.profiles.get(name)
    if profile is None:
        if name == ScepDocument().profile:
            return []  # a document from before there was SCEP
        return [f"scep.profile: no profile '{name}' (have: {', '.join(document.profiles)})"]
    if profile.issuer != "rsa":
        return [f"scep.profile: '{name}' is not under the rsa issuer, and stock SCEP clients know nothing but RSA"]
    if document.scep.enabled and not any(kind.startswith("rsa") for kind in profile.keys):
        return [f"scep.profile: '{name}' allows no RSA keys, and SCEP carries no others (add rsa to its keys)"]
    return []


def is_trust_name(text: str) -> bool:
    """Whether a trust anchor may be called that."""
    return 0 < len(text) <= 64 and text.isprintable()


def anchor_fault(anchor: TrustDocument) -> str | None:
    """Why a certificate can't be a trust anchor, None when it can."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(anchor.pem.encode())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "the certificate has no basicConstraints, so it is not a CA's (trust the manufacturer's CA)"
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension):
        return "not one certificate in PEM"
    if not constraints.ca:  # enforces case 39
        return "the certificate is not a CA's (trust the manufacturer's CA, not a device)"
    try:
        check_authority_key(certificate.public_key())
    except BadKey as exc:
        return f"{exc.message} ({exc.code}: whoever finds its private key makes any device)"
    except UnsupportedAlgorithm:
        return "the certificate's key is of a kind that is not known here"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return None if usage.key_cert_sign else "the certificate may not sign certificates (its keyUsage)"


def _invalid(faults: list[str]) -> OperatorError:
    shown = faults[:MOST_FAULTS] + (["and more"] if len(faults) > MOST_FAULTS else [])
    told = faults[0] if len(faults) == 1 else "\n".join([f"the document has {len(faults)} faults:", *shown])
    return OperatorError("document_invalid", told, "'realm export' shows a document that is valid")


def _is_http_url(text: str) -> bool:
    return _HTTP_URL.fullmatch(text) is not None


_NAMELESS = "nameless"  # which was told already

_HTTP_URL = re.compile(r"http://([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
