"""The extensions of a certificate: what its plan says, and what its issuer adds to every certificate of its own."""

from collections.abc import Collection

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from ca_core.authority.issuer import Issuer
from ca_core.authority.plan import CertificatePlan, general_name

__all__ = ["Extension", "extensions_of", "issuer_extensions"]

Extension = x509.Extension[x509.ExtensionType]


def extensions_of(plan: CertificatePlan) -> list[Extension]:
    """What the certificate itself is about, in the order in which it is written."""
    constraints = x509.BasicConstraints(plan.ca, plan.path_length)
    # "This method" (1) of RFC 5280 4.2.1.2: SHA-1 of the key's bits.
    identifier = x509.SubjectKeyIdentifier.from_public_key(plan.public_key)
    found: list[Extension] = [
        x509.Extension(x509.BasicConstraints.oid, True, constraints),
        x509.Extension(x509.KeyUsage.oid, True, _key_usage_of(plan)),
        x509.Extension(x509.SubjectKeyIdentifier.oid, False, identifier),
    ]
    if plan.extended_key_usage:
        found.append(x509.Extension(x509.ExtendedKeyUsage.oid, False, x509.ExtendedKeyUsage(plan.extended_key_usage)))
    if plan.names:
        names = x509.SubjectAlternativeName([general_name(name) for name in plan.names])
        # "If the subject field contains an empty sequence, then the issuing CA MUST include a subjectAltName
        # extension that is marked as critical." -- RFC 5280 4.2.1.6
        found.append(x509.Extension(x509.SubjectAlternativeName.oid, not list(plan.subject), names))
    if plan.policies:
        policies = x509.CertificatePolicies(
            [x509.PolicyInformation(policy.oid, [policy.cps] if policy.cps else None) for policy in plan.policies]
        )
        found.append(x509.Extension(x509.CertificatePolicies.oid, False, policies))
    found += [x509.Extension(own.oid, own.critical, x509.UnrecognizedExtension(own.oid, own.der)) for own in plan.own]
    return found


def issuer_extensions(issuer: Issuer, public_url: str) -> tuple[Extension, ...]:
    """AKI, CDP and AIA, which are the same in every certificate of `issuer`."""
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    crl = x509.DistributionPoint(
        [x509.UniformResourceIdentifier(f"{public_url}/pki/{issuer.name}/0.crl")], None, None, None
    )
    access = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS,
        x509.UniformResourceIdentifier(f"{public_url}/pki/{issuer.name}.cer"),
    )
    return (
        x509.Extension(
            x509.AuthorityKeyIdentifier.oid,
            False,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
        ),
        x509.Extension(x509.CRLDistributionPoints.oid, False, x509.CRLDistributionPoints([crl])),
        x509.Extension(x509.AuthorityInformationAccess.oid, False, x509.AuthorityInformationAccess([access])),
    )


def _key_usage_of(plan: CertificatePlan) -> x509.KeyUsage:
    if plan.key_usage is not None and not plan.ca:
        return _key_usage(plan.key_usage)
    return _KEY_USAGE_CA if plan.ca else _KEY_USAGE[plan.key_encipherment]


def _key_usage(bits: Collection[str]) -> x509.KeyUsage:
    """The bits by their names in RFC 5280 4.2.1.3."""
    return x509.KeyUsage(
        digital_signature="digitalSignature" in bits,
        content_commitment="nonRepudiation" in bits,
        key_encipherment="keyEncipherment" in bits,
        data_encipherment="dataEncipherment" in bits,
        key_agreement="keyAgreement" in bits,
        key_cert_sign="keyCertSign" in bits,
        crl_sign="cRLSign" in bits,
        encipher_only=False,
        decipher_only=False,
    )


_KEY_USAGE_CA = _key_usage(("keyCertSign", "cRLSign"))
_KEY_USAGE = {
    False: _key_usage(("digitalSignature",)),
    True: _key_usage(("digitalSignature", "keyEncipherment")),
}
