"""What operators do with a realm's trust anchors."""

import hashlib

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, func, select

from ca_core.errors import OperatorError
from ca_core.records.query import Query
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.records.times import rfc3339
from ca_core.registration.administration import RealmAdministration
from ca_core.registration.document import TrustDocument, anchor_fault, is_trust_name
from ca_core.registration.realm import Realm
from ca_core.rows import TrustRow

_d = device.c
_DEVICES = Query(
    select(func.count()).where(
        _d.realm_id == bindparam("realm_id"), _d.manufacturer == bindparam("manufacturer"), _d.state != "retired"
    )
)


class Trust:
    """Adds, lists and removes trust anchors; each change is a new version of the realm's document."""

    def __init__(self, store: Store, realms: RealmAdministration) -> None:
        self._store = store
        self._realms = realms

    async def add(
        self, realm_name: str, pem: bytes, *, purpose: str = "idevid", name: str | None = None, actor: str
    ) -> TrustRow:
        """Trust a CA certificate (PEM). Its name defaults to the subject's O, else CN. Raises `OperatorError`.

        Devices are registered under such names, and whoever signs may choose his own: only a name that is given takes
        over those that are registered under it.
        """
        found = await self._realms.get(realm_name)
        if purpose not in ("idevid", "tls"):
            raise OperatorError("trust_purpose", f"'{purpose[:20]}' is no purpose of trust", "use idevid or tls")
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except (ValueError, x509.InvalidVersion) as exc:
            raise OperatorError("trust_invalid", "the file holds no certificate in PEM", "give a CA's PEM") from exc
        if len(certificates) != 1:
            raise OperatorError(
                "trust_invalid",
                f"the file holds {len(certificates)} certificates",
                "give the one that is to be trusted",
            )
        certificate = certificates[0]
        label = name or _title(certificate)
        if not is_trust_name(label):
            raise OperatorError("trust_name", "the certificate gives no usable name", "give one with --name")
        anchor = TrustDocument(
            name=label,
            for_="tls" if purpose == "tls" else "idevid",
            pem=certificate.public_bytes(Encoding.PEM).decode(),
        )
        fault = anchor_fault(anchor)
        if fault:
            raise OperatorError("trust_invalid", fault, "trust the manufacturer's CA certificate")
        for known in found.document.trust:
            if known.certificate() == certificate:
                raise OperatorError(
                    "trust_exists",
                    f"realm {found.name} trusts this certificate as '{known.name}'",
                    "nothing is to be done",
                )
        if any(known.name == label for known in found.document.trust):
            raise OperatorError(
                "trust_exists", f"realm {found.name} has a trust entry '{label}'", "give another name with --name"
            )
        devices = await self._devices(found, anchor)
        if devices and not name:
            raise OperatorError(
                "trust_name_used",
                f"{_counted(devices)} registered in realm {found.name} under '{label}', as this CA calls itself, and it"
                " would speak for them",
                f"--name '{label}' says that it is meant; another --name keeps them apart",
            )
        document = msgspec.structs.replace(found.document, trust=(*found.document.trust, anchor))
        details: dict[str, str | int] = {"name": label, "fingerprint": _fingerprint(certificate), "devices": devices}
        await self._realms.replace(found, document, "trust.added", details, actor)
        return _trust_row(found.name, anchor, devices)

    async def list(self, realm_name: str) -> list[TrustRow]:
        """The realm's trust anchors. Raises `OperatorError`."""
        found = await self._realms.get(realm_name)
        return [_trust_row(found.name, each, await self._devices(found, each)) for each in found.document.trust]

    async def remove(self, realm_name: str, name: str, *, actor: str) -> None:
        """Stop trusting an anchor. Raises `OperatorError`."""
        found = await self._realms.get(realm_name)
        rest = tuple(anchor for anchor in found.document.trust if anchor.name != name)
        if len(rest) == len(found.document.trust):
            known = ", ".join(anchor.name for anchor in rest) or "none"
            shown = ascii(name[:64])[1:-1]
            raise OperatorError(
                "trust_unknown", f"realm {found.name} has no trust entry '{shown}'", f"there are: {known}"
            )
        document = msgspec.structs.replace(found.document, trust=rest)
        await self._realms.replace(found, document, "trust.removed", {"name": name}, actor)

    async def _devices(self, found: Realm, anchor: TrustDocument) -> int:
        """How many devices a factory identity under this anchor may be one of."""
        if anchor.for_ != "idevid":
            return 0
        row = await self._store.first(_DEVICES, realm_id=found.id, manufacturer=anchor.name)
        return int(row[0]) if row else 0


def _counted(devices: int) -> str:
    return "1 device is" if devices == 1 else f"{devices} devices are"


def _trust_row(realm_name: str, anchor: TrustDocument, devices: int) -> TrustRow:
    certificate = anchor.certificate()
    return TrustRow(
        id=anchor.name,
        realm=realm_name,
        name=anchor.name,
        for_=anchor.for_,
        subject=certificate.subject.rfc4514_string(),
        fingerprint_sha256=_fingerprint(certificate),
        not_after=rfc3339(certificate.not_valid_after_utc),
        devices=devices,
    )


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _title(certificate: x509.Certificate) -> str:
    for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME):
        found = certificate.subject.get_attributes_for_oid(oid)
        if found:
            return str(found[0].value)
    return ""
