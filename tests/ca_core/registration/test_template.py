"""The grammar of templates, and globs: what they match, and that they take no time."""

import itertools
import random
import re

import pytest

from ca_core.errors import OperatorError
from ca_core.registration.glob import Glob
from ca_core.registration.template import FACTS, NameTemplate, Template

FILLED: dict[str, str | None] = {**dict.fromkeys(FACTS, "x"), "device.name": "cam-1", "device.owner": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Acme", "Acme"),
        ("{device.name}", "cam-1"),
        ("a {device.name} of {realm}", "a cam-1 of x"),
        ("{device.owner}", None),
        ("{device.owner?}", None),
        ("by {device.owner?} for {device.name}", None),
    ],
)
def test_a_template_is_filled_with_facts(text: str, value: str | None) -> None:
    template = Template.parse(text)
    assert template.fill(FILLED) == value
    assert template.is_optional == ("?" in text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "it is empty", id="empty"),
        pytest.param("{device.nane}", "there is no 'device.nane'", id="unknown"),
        pytest.param("{}", "there is no ''", id="nothing"),
        pytest.param("a{b", "a '{' stands alone", id="open"),
        pytest.param("a}b", "a '}' stands alone", id="close"),
        pytest.param("{{device.name}}", "stands alone", id="nested"),
        pytest.param("{device.names}", "many names", id="many"),
        pytest.param("x{csr:*}", "must stand alone", id="csr-in-text"),
        pytest.param("{csr:}", "no glob", id="csr-without-glob"),
        pytest.param("{csr:a?b}", "no glob", id="csr-question-mark-inside"),
        pytest.param("x" * 256, "longer than 255", id="long"),
    ],
)
def test_what_is_no_template_is_told(text: str, told: str) -> None:
    with pytest.raises(OperatorError) as caught:
        Template.parse(text)
    assert caught.value.code == "template_invalid"
    assert told in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "{device.names}",
        "{device.names?}",
        "DNS:{device.name}.example.com",
        "DNS:fixed.example.com",
        "URI:urn:x:{device.serial_number?}",
        "email:{device.name}@example.com",
        "{csr:DNS:*.example.com}",
        "{csr:DNS:*.example.com?}",
        "{csr:IP:10.0.0.0/8}",
        "{csr:IP:2001:db8::/32}",
        "{csr:IP:*}",
        "{csr:URI:urn:x:*}",
    ],
)
def test_a_template_of_names_keeps_its_text(text: str) -> None:
    assert NameTemplate.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{device.name}", "template_invalid"),
        ("dns:{device.name}", "template_invalid"),
        ("dirName:x", "template_invalid"),
        ("DNS:", "template_invalid"),
        ("DNS:{csr:*}", "template_invalid"),
        ("{csr:*}", "template_invalid"),
        ("{csr:dir:*}", "template_invalid"),
        ("{csr:IP:10.*}", "template_invalid"),
        ("{csr:IP:10.0.0.1/8}", "template_invalid"),
        ("{csr:URI:*}", "template_invalid"),
        ("{csr:URI:*://a.example.com/}", "template_invalid"),
        ("{csr:URI:https:*}", "template_invalid"),
        ("{csr:URI:https://a@b.example.com/}", "template_invalid"),
        ("{csr:URI:https://a%2e.example.com/}", "template_invalid"),
        ("{csr:URI:https://a.example.com:*/}", "template_invalid"),
        ("{csr:URI:https://a.example.com:65536/}", "template_invalid"),
        ("{csr:URI:https://[::1/}", "template_invalid"),
        ("{csr:URI:https://[fe80::1%25eth0]/}", "template_invalid"),
        ("{csr:URI:https://a.example.com/../*}", "template_invalid"),
        ("{csr:URI:https://a.example.com/%2f*}", "template_invalid"),
        ("{csr:URI:https://a.example.com/ *}", "template_invalid"),
        ("{csr:URI:tag:microsoft.com,2022-09-14:sid:*}", "template_invalid"),
        ("URI:tag:microsoft.com,2022-09-14:sid:S-1-5-21-1-2-3-500", "san_refused"),
        ("URI:tag:microsoft.com,2022-09-14:sid:S-1-5-21-{device.owner}", "template_invalid"),
        ("URI:Tag:microsoft.com,2022-09-14:s%69d:{device.owner}", "template_invalid"),
        ("DNS:*.example.com", "host_invalid"),
        ("IP:10.0.0", "san_invalid"),
        ("email:x", "san_invalid"),
    ],
)
def test_what_is_no_template_of_names_is_told(text: str, code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        NameTemplate.parse(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "name", "is_allowed"),
    [
        ("{csr:DNS:*.example.com}", "DNS:a.example.com", True),
        ("{csr:DNS:*.Example.com}", "DNS:a.example.com", True),
        ("{csr:DNS:*.example.com}", "DNS:a.b.example.com", False),
        ("{csr:DNS:*.example.com}", "DNS:example.com", False),
        ("{csr:DNS:*.example.com}", "DNS:a.example.com.evil", False),
        ("{csr:DNS:*.example.com}", "URI:a.example.com", False),
        ("{csr:IP:10.1.0.0/16}", "IP:10.1.255.255", True),
        ("{csr:IP:10.1.0.0/16}", "IP:10.2.0.1", False),
        ("{csr:IP:10.1.0.0/16}", "IP:::ffff:a01:1", False),
        ("{csr:URI:https://*.example.com/x}", "URI:https://a.example.com/x", True),
        ("{csr:URI:https://*.example.com/x}", "URI:https://evil/.example.com/x", False),
        ("{csr:email:*@example.com}", "email:a@example.com", True),
        ("{csr:email:*@example.com}", "email:a@b@example.com", False),
    ],
)
def test_a_name_of_the_request_must_match_in_its_parts(text: str, name: str, is_allowed: bool) -> None:
    assert NameTemplate.parse(text).allows(name) is is_allowed


@pytest.mark.parametrize("separators", ["", ".", "/?#@"])
def test_a_glob_matches_what_the_same_regular_expression_matches(separators: str) -> None:
    chance = random.Random(0)
    other = f"[^{re.escape(separators)}]" if separators else "."
    matched = 0
    for _ in range(4000):
        pattern = "".join(chance.choice("ab*./") for _ in range(chance.randrange(1, 7)))
        text = "".join(chance.choice("ab./") for _ in range(chance.randrange(9)))
        wanted = re.compile("".join(f"{other}+" if char == "*" else re.escape(char) for char in pattern), re.DOTALL)
        assert Glob(pattern, separators).matches(text) == bool(wanted.fullmatch(text)), (pattern, text)
        matched += bool(wanted.fullmatch(text))
    assert matched > 20


def test_no_glob_is_tried_twice_at_one_place() -> None:
    # What a backtracking matcher would take longer for than the universe will last.
    for stars, length in itertools.product((1, 10, 100), (100, 255)):
        assert not Glob("*a" * stars + "b").matches("a" * length)
