"""Requests that are made up: they ask for what a profile takes from requests, and nothing else."""

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.authority.plan import general_name
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.template import NameTemplate

__all__ = ["asked_name", "sample_names", "sample_subject"]

_PLAIN = {"DNS": "{}.example.com", "IP": "192.0.2.1", "URI": "urn:example:{}", "email": "{}@example.com"}


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


def sample_names(profile: ProfileDocument, fill: str, number: int = 0) -> x509.SubjectAlternativeName | None:
    """The alternative names to ask for; None where the profile takes none. `number` chooses addresses."""
    names = [_name(template, fill, number) for template in profile.rules.names if template.is_asked]
    return x509.SubjectAlternativeName([general_name(name) for name in names]) if names else None


def _name(template: NameTemplate, fill: str, number: int) -> str:
    pattern = template.value.asked.pattern if template.value.asked else "*"
    if template.network is not None:
        return f"IP:{template.network[number % template.network.num_addresses]}"
    return f"{template.kind}:{_PLAIN[template.kind].format(fill) if pattern == '*' else pattern.replace('*', fill)}"
