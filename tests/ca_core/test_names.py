"""Names that operators type, and the forms that are refused."""

import datetime as dt
from collections.abc import Callable

import pytest
from cryptography import x509

from ca_core import names
from ca_core.authority.plan import general_name
from ca_core.errors import OperatorError
from ca_core.names import (
    RESERVED,
    parse_device_name,
    parse_duration,
    parse_host,
    parse_label,
    parse_moment,
    parse_realm_name,
    parse_san,
    parse_serial,
    username_of,
)

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def _code(parse: Callable[[str], object], text: str) -> str:
    with pytest.raises(OperatorError) as caught:
        parse(text)
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    return caught.value.code


@pytest.mark.parametrize("text", ["a", "0", "default", "a-b", "x" * 31, "9-", "est"])
def test_a_realm_name_is_lower_case_letters_digits_and_dashes(text: str) -> None:
    assert parse_realm_name(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("", "name_invalid", id="empty"),
        pytest.param("x" * 32, "name_invalid", id="32-characters"),
        pytest.param("-a", "name_invalid", id="dash-first"),
        pytest.param("A", "name_invalid", id="upper-case"),
        pytest.param("a.b", "name_invalid", id="dot"),
        pytest.param("a_b", "name_invalid", id="underscore"),
        pytest.param("a/b", "name_invalid", id="slash"),
        pytest.param("..", "name_invalid", id="dots"),
        pytest.param("a%2e", "name_invalid", id="percent"),
        pytest.param("a\n", "name_invalid", id="newline-last"),
        pytest.param("\u0430bc", "name_invalid", id="cyrillic-a"),
        pytest.param("\u0661", "name_invalid", id="arabic-digit"),
        pytest.param("\x1b[31m", "name_invalid", id="escape-sequence"),
        *(pytest.param(word, "name_reserved", id=word) for word in sorted(RESERVED)),
    ],
)
def test_a_realm_name_of_another_form_is_refused(text: str, code: str) -> None:
    assert _code(parse_realm_name, text) == code


def test_the_operations_of_est_and_the_path_segments_of_scep_are_reserved() -> None:
    operations = {"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}
    assert operations | {"pkiclient", "certsrv"} <= RESERVED


@pytest.mark.parametrize(
    ("text", "meaning"), [("line", ("line", None)), ("line.gold", ("line", "gold")), ("a-1.b-2", ("a-1", "b-2"))]
)
def test_a_label_is_a_realm_or_a_realm_and_a_profile(text: str, meaning: tuple[str, str | None]) -> None:
    assert parse_label(text) == meaning


@pytest.mark.parametrize(
    "text", ["", ".", "line.", ".gold", "line.gold.more", "line..gold", "line/gold", "Line", "line.cacerts", "csrattrs"]
)
def test_a_label_of_another_form_is_refused(text: str) -> None:
    assert _code(parse_label, text) in {"name_invalid", "name_reserved"}


@pytest.mark.parametrize("text", ["r1", "AA:BB:cc", "printer_2.example", "-", "x" * 64])
def test_a_device_name_is_up_to_64_plain_characters(text: str) -> None:
    assert parse_device_name(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a b", "a,CN=b", "a/b", "a+b", "a\n", "a\0", "\u202eab", "\u00e9", "a'b", "a\x1b[2J"]
)
def test_a_device_name_of_other_characters_is_refused(text: str) -> None:
    assert _code(parse_device_name, text) == "name_invalid"


def test_a_user_name_has_dashes_where_the_device_name_has_colons() -> None:
    assert username_of("AA:BB:cc.d") == "AA-BB-cc.d"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("pki.example.com", "pki.example.com"),
        ("PKI.Example.COM.", "pki.example.com"),
        ("a", "a"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_x.example", "_x.example"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
    ],
)
def test_a_host_is_a_dns_name_in_lower_case(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(".", id="dot"),
        pytest.param("a..", id="two-trailing-dots"),
        pytest.param("a..b", id="empty-label"),
        pytest.param("-a.b", id="dash-first"),
        pytest.param("a-.b", id="dash-last"),
        pytest.param("a" * 64 + ".b", id="label-of-64"),
        pytest.param(".".join(["abcdefg"] * 32), id="254-characters"),
        pytest.param("192.0.2.1", id="ipv4"),
        pytest.param("::1", id="ipv6"),
        pytest.param("*", id="star"),
        pytest.param("*.example.com", id="wildcard"),
        pytest.param("a b", id="space"),
        pytest.param("a\n", id="newline"),
        pytest.param("a:443", id="port"),
        pytest.param("b\u00fccher.example", id="not-ascii"),
        pytest.param("p\u212ai.example", id="kelvin-sign-that-lowers-to-k"),
    ],
)
def test_what_is_no_host_name_is_refused(text: str) -> None:
    assert _code(parse_host, text) == "host_invalid"


@pytest.mark.parametrize(
    ("text", "san"),
    [
        ("DNS:A.Example", "DNS:a.example"),
        ("dns:a.example", "DNS:a.example"),
        ("IP:192.0.2.1", "IP:192.0.2.1"),
        ("ip:2001:DB8:0:0::1", "IP:2001:db8::1"),
        ("URI:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "URI:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        ("uri:HTTP://x/Y", "URI:HTTP://x/Y"),
    ],
)
def test_an_alternative_name_becomes_canonical_and_fits_a_certificate(text: str, san: str) -> None:
    assert parse_san(text) == san
    assert parse_san(san) == san
    name = x509.SubjectAlternativeName([general_name(san)])
    assert x509.SubjectAlternativeName([general_name(san)]) == name


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a.example", id="no-kind"),
        pytest.param("DNS", id="kind-alone"),
        pytest.param("DNS:", id="empty"),
        pytest.param("DNS:*.example", id="wildcard"),
        pytest.param("DNS:192.0.2.1", id="address-as-dns"),
        pytest.param("IP:a.example", id="dns-as-address"),
        pytest.param("IP:192.0.2.0/24", id="network"),
        pytest.param("IP:010.1.1.1", id="octal"),
        pytest.param("IP:fe80::1%eth0", id="ipv6-zone"),
        pytest.param("URI:nothing", id="uri-without-scheme"),
        pytest.param("URI:http://a b", id="uri-with-space"),
        pytest.param("URI:http://a\n", id="uri-with-newline"),
        pytest.param("email:a@b.example", id="email"),
        pytest.param("other:1.2.3", id="other-name"),
        pytest.param("dirName:CN=x", id="directory-name"),
    ],
)
def test_what_is_no_alternative_name_is_refused(text: str) -> None:
    assert _code(parse_san, text) in {"san_invalid", "host_invalid"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("URI:tag:microsoft.com,2022-09-14:sid:S-1-5-21-1-2-3-500", "san_refused"),
        ("uri:TAG:microsoft.com,2022-09-14:%53ID:S-1-5-21-1-2-3-500", "san_refused"),
        ("URI:tag:microsoft.com,2022-09-15:sid:S-1-5-21-1-2-3-500", ""),
        ("URI:urn:sid:S-1-5-21-1-2-3-500", ""),
    ],
)
def test_case_10_no_alternative_name_is_an_account_of_a_windows_domain(text: str, code: str) -> None:
    assert (_code(parse_san, text) if code else parse_san(text) and "") == code


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("12h", 43200), ("7d", 604800), ("36500d", 36500 * 86400)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "0s", "07d", "-1d", "1", "d", "1w", "1 d", "1.5h", "1d1h", "1d\n", "\u0661d", "36501d", "999999999d"]
)
def test_a_duration_of_another_form_or_beyond_a_century_is_refused(text: str) -> None:
    assert _code(parse_duration, text) == "duration_invalid"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW + dt.timedelta(days=7)),
        ("2027-01-31T12:00:00Z", dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)),
        ("2027-01-31t12:00:00z", dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)),
        ("2027-01-31 12:00:00+01:00", dt.datetime(2027, 1, 31, 11, tzinfo=dt.UTC)),
        ("2027-01-31T12:00:00.5-11:30", dt.datetime(2027, 1, 31, 23, 30, 0, 500_000, tzinfo=dt.UTC)),
    ],
)
def test_a_moment_is_a_duration_from_now_or_an_rfc_3339_time(text: str, moment: dt.datetime) -> None:
    parsed = parse_moment(text, NOW)
    assert parsed == moment
    assert parsed.tzinfo is dt.UTC


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("tomorrow", "time_invalid", id="word"),
        pytest.param("", "time_invalid", id="empty"),
        pytest.param("2027-01-31", "time_invalid", id="date-alone"),
        pytest.param("2027-01-31T12:00:00", "time_invalid", id="no-zone"),
        pytest.param("2027-02-30T12:00:00Z", "time_invalid", id="30-february"),
        pytest.param("2027-W05-7T12:00:00Z", "time_invalid", id="week-date"),
        pytest.param("20270131T120000Z", "time_invalid", id="basic-form"),
        pytest.param("2027-01-31\x1b12:00:00", "time_invalid", id="escape-as-separator"),
        pytest.param("9999-12-31T23:59:59-14:00", "time_invalid", id="year-10000-in-utc"),
        pytest.param("9999-12-31T23:59:59Z", "time_invalid", id="year-9999"),
        pytest.param("0001-01-01T00:00:00+01:00", "time_invalid", id="year-0-in-utc"),
        pytest.param("99999999d", "duration_invalid", id="too-many-days"),
        pytest.param("2026-11-22T12:00:00Z", "time_past", id="now"),
        pytest.param("2026-11-22T12:30:00+01:00", "time_past", id="past-in-utc"),
    ],
)
def test_a_moment_of_another_form_or_in_the_past_is_refused(text: str, code: str) -> None:
    assert _code(lambda typed: parse_moment(typed, NOW), text) == code


_TWENTY_OCTETS = "7f" + "00" * 18 + "01"


@pytest.mark.parametrize(
    ("text", "serial"),
    [
        pytest.param("a", "a", id="hex"),
        pytest.param("0A", "a", id="leading-zero-and-upper-case"),
        pytest.param("0x0a", "a", id="0x"),
        pytest.param("0X0A", "a", id="0X"),
        pytest.param("00:fF:0a", "ff0a", id="colons"),
        pytest.param("dec:10", "a", id="decimal"),
        pytest.param("DEC:010", "a", id="decimal-with-zero"),
        pytest.param("10", "10", id="digits-are-hex"),
        pytest.param("dec1", "dec1", id="hex-that-begins-with-dec"),
        pytest.param(_TWENTY_OCTETS, _TWENTY_OCTETS, id="20-octets"),
        pytest.param("00" + _TWENTY_OCTETS.upper(), _TWENTY_OCTETS, id="20-octets-after-a-zero"),
        pytest.param("ff" * 20, "ff" * 20, id="high-bit"),
        pytest.param(":".join(["00", *["fe"] * 20]), "fe" * 20, id="openssl-text-of-the-high-bit"),
        pytest.param(f"dec:{int(_TWENTY_OCTETS, 16)}", _TWENTY_OCTETS, id="20-octets-in-decimal"),
    ],
)
def test_a_serial_number_has_one_form_however_it_is_typed(text: str, serial: str) -> None:
    assert parse_serial(text) == serial


@pytest.mark.parametrize(
    "text",
    ["", ":", "-1", "dec:", "dec:-1", "dec:a", "dec:\u0661", "0x", "xyz", " a", "a\n", "\uff11", "f" * 49, "1_0"],
)
def test_what_is_no_serial_number_is_refused(text: str) -> None:
    assert _code(parse_serial, text) == "serial_invalid"


def test_a_message_never_repeats_what_was_typed_raw_or_whole() -> None:
    with pytest.raises(OperatorError) as caught:
        names.parse_device_name("\x1b]0;" + "x" * 5000)
    assert "\\x1b" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["IP:::ffff:1.2.3.4", "IP:0:0:0:0:0:FFFF:102:304"])
def test_an_address_that_is_written_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_san(text)
    assert caught.value.code == "san_invalid"
    assert parse_san("IP:2001:db8:0::1") == "IP:2001:db8::1"
