"""Templates: where a field of a certificate has its value from, as a profile writes it.

A template is text with placeholders in braces: `{device.name}.cams.example.com`. A placeholder names a fact, with `?`
behind it when the field may be left out for want of it. `{csr:GLOB}` stands alone, and takes what the request itself
asks for, where that matches. There are no regular expressions, no escapes and no braces in text.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ca_core.errors import OperatorError
from ca_core.names import is_account, parse_san
from ca_core.registration import uri_pattern
from ca_core.registration.glob import Glob
from ca_core.registration.uri_pattern import UriPattern

__all__ = ["FACTS", "NAME_KINDS", "SEPARATORS", "NameTemplate", "Template"]

FACTS = (
    "device.name",
    "device.owner",
    "device.serial_number",
    "device.manufacturer",
    "idevid.serial_number",
    "idevid.manufacturer",
    "realm",
)
"""What a placeholder may name: of the device's record, of the factory identity that it has proven, and the realm."""

SEPARATORS = {"DNS": ".", "URI": uri_pattern.SEPARATORS, "email": "@", "IP": "", "": ""}
"""By kind of alternative name (and none, for the subject): the characters that a `*` never stands for."""

NAME_KINDS = ("DNS", "IP", "URI", "email")
_OF_NO_DEVICE = frozenset({"device.owner", "device.manufacturer", "idevid.manufacturer", "realm"})
"""What many devices have alike: an operator says who owns them, and what a manufacturer is called."""
_ALL_NAMES = "device.names"
_CSR = "csr:"
_LONGEST = 255
_PIECE = re.compile(r"\{([^{}]*)\}|([{}])|([^{}]+)")


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template of one value.

    `parts` are (text, is it a fact's name) in their order; `asked` is set when the value is the request's own.
    """

    text: str
    parts: tuple[tuple[str, bool], ...]
    is_optional: bool
    asked: Glob | None = None

    @classmethod
    def parse(cls, text: str) -> "Template":
        """The template of a subject's attribute. Raises `OperatorError`."""
        return _parse(text, "")

    @property
    def facts(self) -> tuple[str, ...]:
        """The facts that it names."""
        return tuple(part for part, is_fact in self.parts if is_fact)

    @property
    def is_common(self) -> bool:
        """Whether no device has a say in the value, which others may then have as well."""
        return self.asked is None and _OF_NO_DEVICE.issuperset(self.facts)

    def text_in(self, realm: str) -> str | None:
        """The value where it is the same for every device of a realm, None where it is not."""
        if self.asked is not None or not {"realm"}.issuperset(self.facts):
            return None
        return self.fill({"realm": realm})

    @property
    def source(self) -> str:
        """Where the value has its origin, in words: `fixed`, `csr`, or the names of facts."""
        if self.asked is not None:
            return "csr"
        return " + ".join(self.facts) or "fixed"

    def fill(self, facts: Mapping[str, str | None]) -> str | None:
        """The value; None when a fact that it needs has no value."""
        out: list[str] = []
        for part, is_fact in self.parts:
            value = facts[part] if is_fact else part
            if not value:
                return None
            out.append(value)
        return "".join(out)

    def missing(self, facts: Mapping[str, str | None]) -> str:
        """The facts that have no value, for an operator."""
        return ", ".join(name for name in self.facts if not facts[name])


@dataclass(frozen=True, slots=True)
class NameTemplate:
    """A parsed template of alternative names.

    `kind` is one of `NAME_KINDS`, or empty for all names of the device's record; `network` and `uri` limit
    addresses and URIs that the request asks for.
    """

    text: str
    kind: str
    value: Template
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    uri: UriPattern | None = None

    @classmethod
    def parse(cls, text: str) -> "NameTemplate":
        """Raises `OperatorError`."""
        inner = text.removeprefix("{").removesuffix("}")
        is_alone = text == f"{{{inner}}}" and not set(inner) & {"{", "}"}
        if is_alone and inner.removesuffix("?") == _ALL_NAMES:
            return cls(text, "", Template(text, (), is_optional=True))
        if is_alone and inner.startswith(_CSR):
            return _asked_names(text, inner)
        kind, colon, rest = text.partition(":")
        if not colon or kind not in NAME_KINDS or not rest:
            raise _invalid(text, "it begins with no kind of name", f"begin it with one of: {', '.join(NAME_KINDS)}")
        template = _parse(rest, kind)
        if template.asked is not None:
            raise _invalid(text, "csr: goes with its kind", f"write {{csr:{kind}:{template.asked.pattern}}}")
        if not template.facts:
            return cls(text, kind, _parse(canonical_name(text).partition(":")[2], kind))
        first, is_fact = template.parts[0]
        if kind == "URI" and not is_fact and is_account(first):  # enforces case 10
            raise _invalid(text, "a Windows domain would take the device for that account", "leave it out")
        return cls(text, kind, template)

    @property
    def is_record(self) -> bool:
        """Whether it stands for all names of the device's record."""
        return not self.kind

    @property
    def is_asked(self) -> bool:
        """Whether it takes names from the request."""
        return self.value.asked is not None

    def allows(self, name: str) -> bool:
        """Whether a canonical name that the request asks for is one that it takes."""
        kind, _, value = name.partition(":")
        if kind != self.kind or self.value.asked is None:
            return False
        if kind == "IP" and getattr(ipaddress.ip_address(value), "ipv4_mapped", None) is not None:
            return False  # another spelling of an address, as the record has none  # enforces case 29
        if self.network is not None:
            return ipaddress.ip_address(value) in self.network  # enforces case 25
        if self.uri is not None:
            return self.uri.matches(value)
        return self.value.asked.matches(value)  # enforces case 25


def canonical_name(text: str) -> str:
    """A finished name in its canonical form. Raises `OperatorError`."""
    kind, _, value = text.partition(":")
    if kind != "email":
        return parse_san(text)
    if not _MAILBOX.fullmatch(value):
        raise OperatorError("san_invalid", f"'{ascii(text[:80])[1:-1]}' is not a mailbox", "use email:local@host")
    return text


_MAILBOX = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9._-]{1,190}")


def _asked_names(text: str, inner: str) -> NameTemplate:
    kind, colon, glob = inner.removeprefix(_CSR).partition(":")
    if not colon or kind not in NAME_KINDS:
        raise _invalid(text, "csr: needs a kind of name", "write, for instance, {csr:DNS:*.example.com}")
    value = _parse_asked(text, glob, kind)
    if kind == "URI" and value.asked is not None:
        try:
            return NameTemplate(text, kind, value, uri=UriPattern.parse(value.asked.pattern))
        except ValueError as exc:
            remedy = "write, for instance, {csr:URI:https://*.example.com/x/*} or {csr:URI:urn:x:*}"
            raise _invalid(text, str(exc), remedy) from exc
    if kind != "IP" or value.asked is None or value.asked.pattern == "*":
        return NameTemplate(text, kind, value)
    try:
        network = ipaddress.ip_network(value.asked.pattern)
    except ValueError as exc:
        raise _invalid(text, "that is no network", "write a network such as 10.1.0.0/16, or *") from exc
    return NameTemplate(text, kind, value, network)


def _parse(text: str, kind: str) -> Template:
    if not text:
        raise _invalid(text, "it is empty", "leave the field out")
    if len(text) > _LONGEST:
        raise _invalid(text, f"it is longer than {_LONGEST} characters", "make it shorter")
    parts: list[tuple[str, bool]] = []
    is_optional = False
    for placeholder, brace, literal in _PIECE.findall(text):
        if brace:
            raise _invalid(text, f"a '{brace}' stands alone", "write placeholders as {device.name}")
        if literal:
            parts.append((literal, False))
            continue
        if placeholder.startswith(_CSR):
            if text != f"{{{placeholder}}}":
                raise _invalid(text, "csr: must stand alone", "let the whole value be {csr:GLOB}")
            return _parse_asked(text, placeholder.removeprefix(_CSR), kind)
        name = placeholder.removesuffix("?")
        is_optional |= name != placeholder
        if name == _ALL_NAMES:
            raise _invalid(text, "device.names stands for many names", "write it alone, in 'names'")
        if name not in FACTS:
            shown = ascii(placeholder[:40])[1:-1]
            known = f"use one of: {', '.join(FACTS)}, csr:GLOB"
            raise _invalid(text, f"there is no '{shown}'", known)
        parts.append((name, True))
    return Template(text, tuple(parts), is_optional)


def _parse_asked(text: str, glob: str, kind: str) -> Template:
    pattern = glob.removesuffix("?")
    if not pattern or len(pattern) > _LONGEST or "?" in pattern:
        raise _invalid(text, "that is no glob", "write * for any value; '*' is the one special character")
    folded = pattern.lower() if kind == "DNS" else pattern  # as names in requests are
    return Template(text, (), pattern != glob, Glob(folded, SEPARATORS[kind]))


def _invalid(text: str, why: str, remedy: str) -> OperatorError:
    return OperatorError("template_invalid", f"'{ascii(text[:80])[1:-1]}': {why}", remedy)
