"""The attributes of a subject that a profile may name, and what each can hold (RFC 5280 appendix A)."""

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from ca_core.csr_names import is_text
from ca_core.errors import OperatorError
from ca_core.registration.values import PRINTABLE, parse_oid

__all__ = ["ATTRIBUTES", "Attribute", "parse_attribute"]

_COUNTRY = re.compile(r"[A-Z]{2}")
_IA5 = re.compile(r"[ -~]*")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One kind of attribute. `most` is its longest value in characters, `form` what the whole value must match."""

    name: str
    oid: ObjectIdentifier
    most: int = 128
    form: re.Pattern[str] | None = None

    def fault(self, value: str) -> str | None:
        """Why a value can't stand there, None when it can."""
        if not value or len(value) > self.most:
            return f"it is not of 1 to {self.most} characters"
        if not is_text(value):
            return "it holds control or formatting characters"
        if self.form is not None and not self.form.fullmatch(value):
            return "it holds characters that this attribute can't hold"
        return None

    def of(self, value: str) -> x509.NameAttribute[str]:
        """The attribute with a value that `fault` has nothing against."""
        return x509.NameAttribute(self.oid, value)


ATTRIBUTES = {
    attribute.name: attribute
    for attribute in (
        Attribute("CN", NameOID.COMMON_NAME, 64),
        Attribute("serialNumber", NameOID.SERIAL_NUMBER, 64, PRINTABLE),
        Attribute("O", NameOID.ORGANIZATION_NAME, 64),
        Attribute("OU", NameOID.ORGANIZATIONAL_UNIT_NAME, 64),
        Attribute("C", NameOID.COUNTRY_NAME, 2, _COUNTRY),
        Attribute("ST", NameOID.STATE_OR_PROVINCE_NAME),
        Attribute("L", NameOID.LOCALITY_NAME),
        Attribute("STREET", NameOID.STREET_ADDRESS),
        Attribute("title", NameOID.TITLE, 64),
        Attribute("GN", NameOID.GIVEN_NAME, 64),
        Attribute("SN", NameOID.SURNAME, 64),
        Attribute("dnQualifier", NameOID.DN_QUALIFIER, 64, PRINTABLE),
        Attribute("DC", NameOID.DOMAIN_COMPONENT, 63, _IA5),
        Attribute("UID", NameOID.USER_ID, 255),
        Attribute("emailAddress", NameOID.EMAIL_ADDRESS, 255, _IA5),
    )
}
"""By the names that RFC 4519, RFC 4514 and openssl give them. A dotted OID names any other, as UTF8String."""


def parse_attribute(text: str) -> Attribute:
    """The attribute of that name or OID. Raises `OperatorError`."""
    if text in ATTRIBUTES:
        return ATTRIBUTES[text]
    if not text[:1].isdigit():
        raise OperatorError(
            "attribute_unknown",
            f"there is no attribute '{ascii(text[:40])[1:-1]}'",
            f"use one of: {', '.join(ATTRIBUTES)}, or a dotted OID",
        )
    oid = parse_oid(text)
    return next((known for known in ATTRIBUTES.values() if known.oid == oid), Attribute(text, oid, 255))
