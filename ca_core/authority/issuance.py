"""The pen: the only room that reaches a CA's signing key. Everything that is signed is signed here.

A certificate is signed in memory and compared with its plan; it leaves this process only after its record is durable,
which is the caller's commit.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import bindparam, select

from ca_core.authority.extensions import Extension, extensions_of, issuer_extensions
from ca_core.authority.hsm import Hsm
from ca_core.authority.issuer import Issuer, check_fit
from ca_core.authority.keyring import Keyring, check_token
from ca_core.authority.keys import Signer, digest_for
from ca_core.authority.kinds import USUAL
from ca_core.authority.new_key import InToken, NewKey
from ca_core.authority.pin import HsmSettings
from ca_core.authority.plan import CertificatePlan
from ca_core.authority.sealing import PrivateKey, UnlockKey
from ca_core.errors import InternalError, IssuerUnfit, SealingFailed
from ca_core.meter import NO_METER, Meter
from ca_core.model import RaKey, Serial
from ca_core.public_key import PublicKey, key_kind
from ca_core.records.query import Query
from ca_core.records.schema import issuer as issuer_table
from ca_core.records.store import Store

_PARENT = Query(select(issuer_table.c.der).where(issuer_table.c.id == bindparam("id")))


@dataclass(frozen=True, slots=True)
class SignedCertificate:
    """What was signed, and not yet recorded: hold it back until the commit."""

    plan: CertificatePlan
    serial: Serial
    certificate: x509.Certificate = field(repr=False)
    der: bytes = field(repr=False)


async def prove_token(settings: HsmSettings | None, token: str) -> None:
    """See that a HSM's token can have the usual keys of a realm, before there is a store to refer to them.

    Raises `HsmUnfit`, `Unavailable`.
    """
    hsm = Hsm(settings) if settings is not None else None
    try:
        await check_token(hsm, token, list(USUAL.values()), decrypts=True)
    finally:
        if hsm is not None:
            hsm.close()


class Issuance:
    """Signs certificates and CRLs with the realm's issuers.

    `unlock_key` opens the sealed keys; without one (a command that only reads) whatever signs raises `Unavailable`.
    `hsm` reaches the keys that are in one.
    """

    def __init__(
        self, store: Store, unlock_key: UnlockKey | None, meter: Meter = NO_METER, hsm: Hsm | None = None
    ) -> None:
        self._store = store
        self._keys = Keyring(store, unlock_key, hsm)
        self._meter = meter
        # By certificate, not by name: a name that another node gave to another key never picks the wrong one.
        self._signers: dict[bytes, Signer] = {}
        self._fixed: dict[tuple[str, str], tuple[Extension, ...]] = {}

    @property
    def can_sign(self) -> bool:
        """Whether the keys can be opened at all."""
        return self._keys.can_unlock

    async def unlock_trouble(self) -> str | None:
        """Why nothing can be signed, as far as the unlock key is concerned; None when it opens the CA keys."""
        if not self._keys.can_unlock:
            return "there is no unlock key, so nothing can be signed"
        try:
            await self._keys.prove_unlock_key()
        except SealingFailed:
            return "the unlock key does not open the CA keys, so nothing can be signed"
        return None

    async def issue(self, plan: CertificatePlan, issuer: Issuer, public_url: str) -> SignedCertificate:
        """Sign what the plan says under `issuer`, with CDP and AIA under `public_url`.

        Raises `InternalError` when what was signed is not what was planned.
        """
        fixed = self._extensions_of(issuer, public_url)
        return await _sign(plan, issuer.certificate.subject, fixed, await self._signer(issuer), self._meter)

    async def sign_crl(self, issuer: Issuer, tbs: bytes) -> bytes:
        """The signature over a TBSCertList of `issuer`."""
        signer = await self._signer(issuer)
        began = time.perf_counter()
        signature = await signer.sign(tbs)
        self._meter.signed(signer.backend, time.perf_counter() - began)
        return signature

    async def new_key(self, kind: str, where: InToken | None = None) -> NewKey:
        """Make a key; see `Keyring.new_key`."""
        return await self._keys.new_key(kind, where)

    async def discard(self, keys: Sequence[NewKey]) -> None:
        """Remove keys from the HSM whose record came to nothing."""
        await self._keys.discard(keys)

    async def check_token(self, token: str, kinds: Sequence[str], *, decrypts: bool) -> None:
        """See that a HSM's token can have keys of these kinds, and open SCEP requests if it `decrypts`.

        Raises `HsmUnfit`, `Unavailable`.
        """
        await self._keys.check_token(token, kinds, decrypts=decrypts)

    async def token_of(self, issuer: Issuer) -> str | None:
        """The label of the token that has the issuer's key; None when it is sealed in the store."""
        return await self._keys.token_of(issuer.key_name, "ca")

    async def self_sign(self, plan: CertificatePlan, key: NewKey) -> SignedCertificate:
        """A root: a certificate signed with its own, just made, key."""
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key)
        fixed = (x509.Extension(identifier.oid, False, identifier),)
        signer = await self._keys.signer_of_new(key, "new root")
        return await _sign(plan, plan.subject, fixed, signer, self._meter)

    async def adopt(self, issuer: Issuer, key: NewKey) -> None:
        """Let an issuer sign whose key is not in the store yet, while a realm is being made."""
        self._signers[issuer.der] = await self._keys.signer_of_new(key, issuer.key_name)

    async def server_key(self, name: str, public_key: PublicKey) -> PrivateKey:
        """The private key of one of enrolld's own TLS server certificates, never of a CA. Raises `SealingFailed`."""
        return await self._keys.server_key(name, public_key)

    async def ra_key(self, name: str, public_key: PublicKey) -> RaKey:
        """The key of a SCEP RA, which is no CA's. Raises `SealingFailed`, `Unavailable`."""
        return await self._keys.ra_key(name, public_key)

    async def prove_ra_key(self, name: str, public_key: PublicKey) -> None:
        """See that an RA's key can be used, if it is in a HSM. Raises `HsmUnfit`, `Unavailable`."""
        if await self._keys.token_of(name, "ra") is not None:
            await self._keys.ra_key(name, public_key)

    async def check_key(self, issuer: Issuer) -> None:
        """See that the issuer's key opens and belongs to its certificate. Raises `SealingFailed`, `Unavailable`."""
        await self._signer(issuer)

    def _extensions_of(self, issuer: Issuer, public_url: str) -> tuple[Extension, ...]:
        found = self._fixed.get((issuer.name, public_url))
        if found is None:
            found = self._fixed[issuer.name, public_url] = issuer_extensions(issuer, public_url)
        return found

    async def _signer(self, issuer: Issuer) -> Signer:
        signer = self._signers.get(issuer.der)
        if signer is None:
            await self._check_fit(issuer)  # enforces case 75
            public_key = _signing_key_of(issuer)
            signer = self._signers[issuer.der] = await self._keys.signer(issuer.key_name, public_key)
        return signer

    async def _check_fit(self, issuer: Issuer) -> None:
        parent: x509.Certificate | None = None
        if issuer.parent_id is not None:
            row = await self._store.first(_PARENT, id=issuer.parent_id)
            if row is None:
                raise IssuerUnfit("issuer_chain", f"the CA above {issuer.name} is not in the store")
            parent = x509.load_der_x509_certificate(row[0])
        check_fit(issuer.name, issuer.certificate, parent)


def new_serial() -> Serial:
    """A random serial of 159 bits: positive, and never more than 20 octets (RFC 5280 4.1.2.2)."""
    return Serial(1 + secrets.randbelow(2**159 - 1))


def signature_algorithm_key(issuer: Issuer) -> tuple[str, str]:
    """The kind of the issuer's key (`rsa`, `ec`, `ed25519`, `ml-dsa-65`) and the hash that it signs with, if any."""
    key = _signing_key_of(issuer)
    digest = digest_for(key)
    if digest is None:
        return key_kind(key), ""
    return ("rsa" if isinstance(key, rsa.RSAPublicKey) else "ec"), digest.name


def _signing_key_of(issuer: Issuer) -> PublicKey:
    key = issuer.certificate.public_key()
    if not isinstance(key, PublicKey):
        raise InternalError(f"the issuer {issuer.name} has a key that can't sign")
    return key


def check_matches(
    certificate: x509.Certificate, plan: CertificatePlan, serial: int, issuer: x509.Name, fixed: Sequence[Extension]
) -> None:
    """Raise `InternalError` unless the certificate says what was planned, and `fixed` of its issuer, and no more."""
    planned = {(extension.oid, extension.critical): extension.value for extension in (*extensions_of(plan), *fixed)}
    signed = {(extension.oid, extension.critical): extension.value for extension in certificate.extensions}
    same = (
        certificate.serial_number == serial
        and certificate.issuer == issuer
        and certificate.subject == plan.subject
        and certificate.not_valid_before_utc == plan.not_before
        and certificate.not_valid_after_utc == plan.not_after
        and certificate.public_key() == plan.public_key
        and signed == planned
    )
    if not same:
        raise InternalError(f"the signed certificate {serial:x} is not the planned one")


async def _sign(
    plan: CertificatePlan, issuer: x509.Name, fixed: Sequence[Extension], signer: Signer, meter: Meter
) -> SignedCertificate:
    serial = new_serial()
    builder = x509.CertificateBuilder(
        issuer,
        plan.subject,
        plan.public_key,
        serial,
        plan.not_before.replace(tzinfo=None),
        plan.not_after.replace(tzinfo=None),
        [*extensions_of(plan), *fixed],
    )
    began = time.perf_counter()
    certificate = await signer.sign_certificate(builder)
    meter.signed(signer.backend, time.perf_counter() - began)
    check_matches(certificate, plan, serial, issuer, fixed)
    return SignedCertificate(plan, serial, certificate, certificate.public_bytes(Encoding.DER))
