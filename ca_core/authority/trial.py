"""A CA for trials: signs what a plan says, so that it can be looked at, with a key that nobody keeps or believes."""

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_core.authority.extensions import extensions_of, issuer_extensions
from ca_core.authority.issuer import Issuer
from ca_core.authority.plan import CertificatePlan
from ca_core.authority.sealing import PrivateKey

__all__ = ["TrialCa"]

_LENGTH = dt.timedelta(days=3650)


class TrialCa:
    """An issuing CA of a family (ec, rsa), with a new key, of the shape that a realm's own has."""

    def __init__(self, family: str, now: dt.datetime) -> None:
        self._key: PrivateKey = (
            rsa.generate_private_key(65537, 2048) if family == "rsa" else ec.generate_private_key(ec.SECP256R1())
        )
        not_before = now.replace(microsecond=0)
        plan = CertificatePlan(
            subject=x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enrolld"),
                    x509.NameAttribute(NameOID.COMMON_NAME, f"Trial CA {family}"),
                ]
            ),
            public_key=self._key.public_key(),
            not_before=not_before,
            not_after=not_before + _LENGTH,
            ca=True,
            path_length=0,
        )
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(plan.public_key)
        certificate = self._sign(plan, plan.subject, [x509.Extension(own.oid, False, own)])
        self._issuer = Issuer(
            id=0,
            realm_id=0,
            name=f"trial-{family}-1",
            family=family,
            generation=1,
            state="active",
            key_name="",
            not_after=plan.not_after,
            revocations=0,
            parent_id=None,
            der=certificate.public_bytes(Encoding.DER),
            certificate=certificate,
        )

    @property
    def not_after(self) -> dt.datetime:
        """The last second of its own validity."""
        return self._issuer.not_after

    def issue(self, plan: CertificatePlan, public_url: str) -> bytes:
        """The certificate that the plan describes, DER, of no worth."""
        fixed = issuer_extensions(self._issuer, public_url)
        return self._sign(plan, self._issuer.certificate.subject, list(fixed)).public_bytes(Encoding.DER)

    def _sign(
        self, plan: CertificatePlan, issuer: x509.Name, fixed: list[x509.Extension[x509.ExtensionType]]
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer,
            plan.subject,
            plan.public_key,
            x509.random_serial_number(),
            plan.not_before.replace(tzinfo=None),
            plan.not_after.replace(tzinfo=None),
            [*extensions_of(plan), *fixed],
        )
        return builder.sign(self._key, hashes.SHA256())
