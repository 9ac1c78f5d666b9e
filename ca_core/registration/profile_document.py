"""A profile as an operator writes it, and as the rooms use it: parsed once, when the document is validated.

Default deny: what a profile does not name is not in the certificate. What would let a device act as a CA, an OCSP
responder, a time stamp authority or an enrollment server can't be written at all.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import msgspec
from cryptography.x509.oid import ObjectIdentifier

from ca_core.authority.plan import OwnExtension, Policy
from ca_core.errors import OperatorError
from ca_core.names import parse_duration, parse_realm_name
from ca_core.registration.subject import Attribute, parse_attribute
from ca_core.registration.template import NameTemplate, Template
from ca_core.registration.values import extension_of, parse_extended_key_usage, policy_of

__all__ = [
    "FAMILIES",
    "KEYS",
    "KEY_USAGES",
    "ExtensionDocument",
    "PolicyDocument",
    "ProfileDocument",
    "Rules",
    "profile_faults",
    "usages_for",
]

T = TypeVar("T")
FAMILIES = ("ec", "rsa")
MAX_LIST = 32

KEYS = (
    *("rsa", "rsa-2048", "rsa-3072", "rsa-4096"),
    *("p-256", "p-384", "p-521", "ed25519", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87"),
)
"""Kinds of keys that a profile may allow; `rsa` is any size from 2048 to 4096 bits."""

KEY_USAGES = ("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement")
"""By their names in RFC 5280 4.2.1.3. Those that a CA has are not among them."""

CA_USAGES = ("keyCertSign", "cRLSign")

_SIGNING = ("digitalSignature", "nonRepudiation")
_FITTING: dict[str, tuple[str, ...]] = {
    "rsa": (*_SIGNING, "keyEncipherment", "dataEncipherment"),  # RFC 4055 1.2
    "p-": (*_SIGNING, "keyAgreement"),  # RFC 5480 3
    "ed25519": _SIGNING,  # RFC 8410 5
    "ml-dsa": _SIGNING,  # RFC 9881 3
}


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PolicyDocument(_Part, frozen=True, kw_only=True):
    """A certificate policy; `cps` is the URI of its practice statement."""

    oid: str
    cps: str | None = None


class ExtensionDocument(_Part, frozen=True, kw_only=True):
    """An extension that no other key sets. `type` says how `value` is written: der in base64, octets in hex."""

    oid: str
    critical: bool = False
    type: str = "der"
    value: str = ""


class ProfileDocument(_Part, frozen=True, kw_only=True, dict=True):
    """Rules for one kind of certificate. `issuer` is a key family (ec, rsa); durations are such as 90d.

    `subject` maps attributes to templates, in the order of the subject; `names` are templates of alternative names.
    `others` is what becomes of what a request asks beyond them. `jitter` is how much earlier, by chance, a certificate
    may end. Without `key_usage` it is digitalSignature, for RSA also keyEncipherment. `lint_allow` names the findings
    that are meant.
    """

    issuer: str = "ec"
    validity: str = "90d"
    extended_key_usages: tuple[str, ...] = ("clientAuth",)
    keys: tuple[str, ...] = ("rsa", "p-256", "p-384", "p-521")
    rekey: Literal["optional", "required"] = "optional"
    subject: dict[str, str | tuple[str, ...]] = msgspec.field(default_factory=lambda: {"CN": "{device.name}"})
    names: tuple[str, ...] = ("{device.names}",)
    others: Literal["drop", "refuse"] = "drop"
    jitter: str | None = None
    key_usage: tuple[str, ...] | None = None
    policies: tuple[PolicyDocument, ...] = ()
    extensions: tuple[ExtensionDocument, ...] = ()
    lint_allow: tuple[str, ...] = ()

    @property
    def length(self) -> dt.timedelta:
        """How long a certificate is valid."""
        return parse_duration(self.validity)

    @cached_property
    def rules(self) -> "Rules":
        """What the document says, parsed. Raises `OperatorError` for one that was never validated."""
        subject = tuple(
            (parse_attribute(name), Template.parse(text))
            for name, texts in self.subject.items()
            for text in _texts(texts)
        )
        names = tuple(NameTemplate.parse(text) for text in self.names)
        templates = [template for _, template in subject] + [name.value for name in names]
        return Rules(
            subject=subject,
            names=names,
            extended_key_usages=tuple(dict.fromkeys(map(parse_extended_key_usage, self.extended_key_usages))),
            policies=tuple(policy_of(policy.oid, policy.cps) for policy in self.policies),
            own=tuple(extension_of(e.oid, e.type, e.value, e.critical) for e in self.extensions),
            jitter=parse_duration(self.jitter) if self.jitter else dt.timedelta(),
            wants_idevid=any(fact.startswith("idevid.") for template in templates for fact in template.facts),
        )

    def allows_key(self, kind: str) -> bool:
        """Whether a key of this kind (`key_kind`) may be certified."""
        return kind in self.keys or (kind.startswith("rsa-") and "rsa" in self.keys)


@dataclass(frozen=True, slots=True)
class Rules:
    """A profile's document, parsed. `wants_idevid` when a value must be proven by a factory identity."""

    subject: tuple[tuple[Attribute, Template], ...]
    names: tuple[NameTemplate, ...]
    extended_key_usages: tuple[ObjectIdentifier, ...]
    policies: tuple[Policy, ...]
    own: tuple[OwnExtension, ...]
    jitter: dt.timedelta
    wants_idevid: bool


def usages_for(usages: tuple[str, ...] | None, kind: str) -> tuple[str, ...]:
    """The key usage of a key of this kind: what the profile says, as far as such a key can do it."""
    fitting = next(bits for begin, bits in _FITTING.items() if kind.startswith(begin))
    if usages is None:
        usages = ("digitalSignature", "keyEncipherment")
        fitting = tuple(bit for bit in fitting if bit in usages)
    return tuple(bit for bit in usages if bit in fitting)


def profile_faults(path: str, name: str, profile: ProfileDocument) -> list[str]:
    """All that makes no sense in a profile, each with its key."""
    faults: list[str] = []

    def check(key: str, parse: Callable[..., T], *values: object) -> T | None:
        try:
            return parse(*values)
        except OperatorError as exc:
            faults.append(f"{path}{key}: {exc.message} ({exc.remedy})")
        return None

    check("", parse_realm_name, name, "profile")
    validity = check(".validity", parse_duration, profile.validity)
    if profile.jitter is not None:
        jitter = check(".jitter", parse_duration, profile.jitter)
        if jitter is not None and validity is not None and 2 * jitter > validity:
            faults.append(f"{path}.jitter: {profile.jitter} is more than half of {profile.validity} (use less)")
    if profile.issuer not in FAMILIES:
        faults.append(f"{path}.issuer: no issuer family '{profile.issuer}' (use one of: {', '.join(FAMILIES)})")
    faults += _key_faults(path, profile)
    for usage in profile.extended_key_usages:
        check(".extended_key_usages", parse_extended_key_usage, usage)
    if not profile.extended_key_usages:
        faults.append(f"{path}.extended_key_usages: empty would mean any purpose (use clientAuth)")
    for attribute, texts in profile.subject.items():
        key = f".subject.{_shown(attribute)}"
        known = check(key, parse_attribute, attribute)
        if not _texts(texts):
            faults.append(f"{path}{key}: an empty list (leave it out)")
        for text in _texts(texts):
            template = check(key, Template.parse, text)
            fault = known.fault(text) if known and template and template.source == "fixed" else None
            if fault:
                faults.append(f"{path}{key}: '{_shown(text)}' can't stand there, because {fault}")
    for index, text in enumerate(profile.names):
        name_template = check(f".names[{index}]", NameTemplate.parse, text)
        if name_template is not None and _is_too_long(name_template):
            faults.append(f"{path}.names[{index}]: no host name is so long (a label has up to 63 characters)")
    for index, policy in enumerate(profile.policies):
        check(f".policies[{index}]", policy_of, policy.oid, policy.cps)
    for index, own in enumerate(profile.extensions):
        check(f".extensions[{index}]", extension_of, own.oid, own.type, own.value, own.critical)
    if not profile.subject and not profile.names:
        faults.append(f"{path}: neither 'subject' nor 'names' says anything (a certificate must name something)")
    return faults + _list_faults(path, profile)


def _is_too_long(template: NameTemplate) -> bool:
    """Whether no host name matches what requests may ask for."""
    if template.kind != "DNS" or template.value.asked is None:
        return False
    shortest = template.value.asked.pattern.replace("*", "x")
    return any(len(label) > 63 for label in shortest.split("."))


def _key_faults(path: str, profile: ProfileDocument) -> list[str]:
    faults = [
        f"{path}.keys: no kind of key '{_shown(kind)}' (use: {', '.join(KEYS)})"
        for kind in profile.keys
        if kind not in KEYS
    ]
    if not profile.keys:
        faults.append(f"{path}.keys: empty would refuse every key (use p-256)")
    usages = profile.key_usage
    if usages is None:
        return faults
    unknown = [usage for usage in usages if usage not in KEY_USAGES]
    for usage in unknown:
        why = "is given to no device: only a CA has it" if usage in CA_USAGES else "is not known"  # enforces case 22
        faults.append(f"{path}.key_usage: '{_shown(usage)}' {why} (use: {', '.join(KEY_USAGES)})")
    # "at least one of the bits MUST be set to 1" -- RFC 5280 4.2.1.3
    idle = [kind for kind in profile.keys if kind in KEYS and not usages_for(usages, kind)]
    if idle and not unknown:
        faults.append(f"{path}.key_usage: nothing of it fits a key of {', '.join(idle)} (add digitalSignature)")
    return faults


def _list_faults(path: str, profile: ProfileDocument) -> list[str]:
    """What stands twice, or in lists that nobody needs."""
    lists = {
        "keys": profile.keys,
        "names": profile.names,
        "key_usage": profile.key_usage or (),
        "extended_key_usages": profile.extended_key_usages,
        "policies": tuple(policy.oid for policy in profile.policies),
        "extensions": tuple(own.oid for own in profile.extensions),
        "lint_allow": profile.lint_allow,
        "subject": tuple(text for texts in profile.subject.values() for text in _texts(texts)),
    }
    faults = [f"{path}.{key}: more than {MAX_LIST} entries" for key, texts in lists.items() if len(texts) > MAX_LIST]
    # Two attributes may have one value, and usages that stand twice were let pass before: they are given once.
    del lists["subject"], lists["extended_key_usages"]
    for key, texts in lists.items():
        twice = sorted({text for text in texts if texts.count(text) > 1})[:3]
        faults += [f"{path}.{key}: '{_shown(text)}' stands twice (once is enough)" for text in twice]
    return faults


def _texts(texts: str | tuple[str, ...]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def _shown(text: str) -> str:
    return ascii(text[:80])[1:-1]
