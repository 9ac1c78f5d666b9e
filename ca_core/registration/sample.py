"""Requests that are made up: they ask for what a profile takes from requests, and nothing else.

Where many devices ask, each asks for names of its own, as far as the profile has room for them.
"""

import ipaddress

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.authority.plan import general_name
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.template import NameTemplate, Template

__all__ = ["asked_name", "is_for_few", "sample_names", "sample_subject"]

_PLAIN = {"DNS": "{}.example.com", "URI": "urn:example:{}", "email": "{}@example.com"}
_ADDRESSES = ipaddress.IPv4Network("198.18.0.0/15")  # of no network that is in use (RFC 2544)
_MANY = 1 << 16
_OF_EACH = frozenset({"device.name", "device.serial_number", "idevid.serial_number"})
"""The facts that no two devices have in common."""


def asked_name(profile: ProfileDocument, fill: str) -> str | None:
    """The common name to ask for, where the profile takes it from the request; `fill` stands for each `*`."""
    for attribute, template in profile.rules.subject:
        if attribute.oid == NameOID.COMMON_NAME and template.asked is not None:
            return template.asked.pattern.replace("*", fill)
    return None


def sample_subject(profile: ProfileDocument, fill: str, common_name: str | None = None) -> x509.Name:
    """The subject to ask for; with a `common_name` where the profile takes none from the request."""
    asked = [
        attribute.of(template.asked.pattern.replace("*", fill))
        for attribute, template in profile.rules.subject
        if template.asked is not None
    ]
    if common_name is not None and asked_name(profile, fill) is None:
        asked.insert(0, x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(asked)


def sample_names(
    profile: ProfileDocument, fill: str, number: int = 0, *, of_many: bool = False
) -> x509.SubjectAlternativeName | None:
    """The alternative names to ask for; None where the profile takes none. `number` chooses addresses.

    Who is one `of_many` devices leaves out what few can have, where he may.
    """
    asked = [template for template in profile.rules.names if template.is_asked]
    if of_many:
        asked = [each for each in asked if not each.value.is_optional or _room(each) >= _MANY]
    names = [_name(template, fill, number) for template in asked]
    return x509.SubjectAlternativeName([general_name(name) for name in names]) if names else None


def is_for_few(profile: ProfileDocument) -> bool:
    """Whether its certificates have a name that one device may have, or few: others are refused it."""
    names = [template for template in profile.rules.names if not (template.is_asked and template.value.is_optional)]
    called = [template for attribute, template in profile.rules.subject if attribute.oid == NameOID.COMMON_NAME]
    return min([*map(_room, names), *map(_room_of_value, called)], default=_MANY) < _MANY


def _room(template: NameTemplate) -> int:
    """How many devices may have such a name at a time; `_MANY` is enough."""
    if template.is_record:
        return _MANY
    if template.network is not None:
        return min(template.network.num_addresses, _MANY)
    return _room_of_value(template.value)


def _room_of_value(template: Template) -> int:
    if template.asked is not None:
        return _MANY if "*" in template.asked.pattern else 1
    return _MANY if template.is_common or _OF_EACH & set(template.facts) else 1


def _name(template: NameTemplate, fill: str, number: int) -> str:
    pattern = template.value.asked.pattern if template.value.asked else "*"
    if template.network is not None:
        return f"IP:{template.network[number % template.network.num_addresses]}"
    if template.kind == "IP" and pattern == "*":
        return f"IP:{_ADDRESSES[1 + number % (_ADDRESSES.num_addresses - 2)]}"
    return f"{template.kind}:{_PLAIN[template.kind].format(fill) if pattern == '*' else pattern.replace('*', fill)}"
