"""What a realm's webhook is asked, which of its answers count, and where a question may go. Attack cases 49 and S4."""

import dataclasses
import datetime as dt
import ipaddress
import json
from typing import Any

import msgspec
import pytest

from ca_core.codes import CODES
from ca_core.errors import NotAuthorized
from ca_core.model import Means, Operation
from ca_core.registration.admission.webhook import (
    MAX_ANSWER,
    Idevid,
    Question,
    Verdict,
    WebhookDocument,
    check_narrows,
    encode_question,
    read_verdict,
    webhook_faults,
    webhook_refusal,
)
from ca_core.registration.admission.webhook_address import address_fault, is_loopback, network_fault
from tests.helpers.tls_pki import issue

QUESTION = Question(
    request_id="k7f3-9xq2",
    realm="pumps",
    profile="device",
    protocol="est",
    operation=Operation.ENROLL,
    device="pump-1",
    subject="CN=pump-1",
    asked=("DNS:pump-1.example.com", "DNS:other.example.com"),
    names=("DNS:pump-1.example.com", "IP:192.0.2.7"),
    validity=dt.timedelta(days=90),
    key_kind="EC P-256",
    key_sha256="6e" * 32,
    source="192.0.2.7",
    means=(Means.IDEVID,),
    idevid=Idevid("CN=Acme CA", "AC-1001", "9a" * 32),
)


def document(url: str = "https://hooks.example.com/enrolld", **others: Any) -> WebhookDocument:
    return WebhookDocument(url=url, key=others.pop("key", "hooks"), **others)


ANY = "0.0.0.0"  # noqa: S104  # judged here, not bound


# --- where it may go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "networks", "loopback", "fault"),
    [
        pytest.param(ANY, [], False, "this very machine, or none", id="any"),
        pytest.param(ANY, ["0.0.0.0/1"], False, "this very machine, or none", id="any-though-listed"),
        pytest.param("0.1.2.3", [], False, "this very machine, or none", id="this-network"),
        pytest.param("::", [], False, "this very machine, or none", id="any-v6"),
        pytest.param("127.0.0.1", [], False, "not public", id="loopback"),
        pytest.param("::1", [], False, "not public", id="loopback-v6"),
        pytest.param("::ffff:127.0.0.1", [], False, "not public", id="mapped-loopback"),
        pytest.param("::ffff:0.0.0.0", [], False, "this very machine, or none", id="mapped-any"),
        pytest.param(
            "::ffff:169.254.169.254", ["::ffff:0:0/96"], False, "local link", id="mapped-metadata-though-listed"
        ),
        pytest.param("::127.0.0.1", [], False, "leads to 127.0.0.1", id="compatible-loopback"),
        pytest.param("2002:7f00:1::", [], False, "leads to 127.0.0.1", id="6to4-loopback"),
        pytest.param("2002:a9fe:a9fe::1", ["2002::/16"], False, "leads to 169.254.169.254", id="6to4-metadata-listed"),
        pytest.param("2002:a01:5::1", ["2002::/16"], False, "leads to 10.1.0.5", id="6to4-private-though-listed"),
        pytest.param("64:ff9b::7f00:1", [], False, "leads to 127.0.0.1", id="nat64-loopback"),
        pytest.param("64:ff9b::a9fe:a9fe", [], False, "leads to 169.254.169.254", id="nat64-metadata"),
        pytest.param("64:ff9b::a83f:8110", [], False, "leads to 168.63.129.16", id="nat64-metadata-that-is-public"),
        pytest.param("64:ff9b:1::a01:5", [], False, "leads to 10.1.0.5", id="site-nat64-private"),
        pytest.param("2001:0:808:808::1", [], False, "leads to 255.255.255.254", id="teredo"),
        pytest.param("2600::5efe:7f00:1", [], False, "leads to 127.0.0.1", id="isatap-loopback"),
        pytest.param("169.254.169.254", [], False, "local link", id="metadata"),
        pytest.param("169.254.169.254", ["169.0.0.0/8"], False, "local link", id="metadata-though-listed"),
        pytest.param("fd00:ec2::254", ["fd00::/8"], False, "metadata", id="metadata-v6-though-listed"),
        pytest.param("fd20:ce::254", ["fd00::/8"], False, "metadata", id="metadata-google-though-listed"),
        pytest.param("100.100.100.200", ["100.64.0.0/10"], False, "metadata", id="metadata-alibaba-though-listed"),
        pytest.param("168.63.129.16", [], False, "metadata", id="metadata-azure"),
        pytest.param("192.0.0.192", [], False, "metadata", id="metadata-oracle"),
        pytest.param("fe80::1", ["fe00::/7"], False, "local link", id="link-local-though-listed"),
        pytest.param("fec0::1", [], False, "local site", id="site-local"),
        pytest.param("224.0.0.1", [], False, "a group", id="multicast"),
        pytest.param("ff0e::1", [], False, "a group", id="multicast-v6"),
        pytest.param("255.255.255.255", [], False, "nobody's", id="broadcast"),
        pytest.param("10.0.0.1", [], False, "not public", id="private-10"),
        pytest.param("172.16.0.1", [], False, "not public", id="private-172"),
        pytest.param("192.168.1.1", [], False, "not public", id="private-192"),
        pytest.param("100.64.0.1", [], False, "not public", id="carrier"),
        pytest.param("192.0.0.10", [], False, "not public", id="protocols"),
        pytest.param("192.0.2.1", [], False, "not public", id="documents"),
        pytest.param("198.18.0.1", [], False, "not public", id="benchmarks"),
        pytest.param("fd12::1", [], False, "not public", id="unique-local"),
        pytest.param("2001:db8::1", [], False, "not public", id="documents-v6"),
        pytest.param("3fff::1", [], False, "not public", id="documents-new-v6"),
        pytest.param("5f00::1", [], False, "not public", id="segment-routing"),
        pytest.param("10.2.0.1", ["10.1.0.0/16"], False, "in none of its networks", id="beside-the-list"),
        pytest.param("8.8.8.8", ["10.1.0.0/16"], False, "in none of its networks", id="public-beside-the-list"),
        pytest.param("2600::1", ["10.1.0.0/16"], False, "in none of its networks", id="other-version-than-the-list"),
        pytest.param("8.8.8.8", [], True, "not this machine", id="localhost-elsewhere"),
        pytest.param("10.1.0.5", ["10.1.0.0/16"], True, "not this machine", id="localhost-elsewhere-though-listed"),
        pytest.param("127.0.0.1", ["10.1.0.0/16"], True, "in none of its networks", id="loopback-beside-the-list"),
        pytest.param("8.8.8.8", [], False, None, id="public-passes"),
        pytest.param("2606:4700::1111", [], False, None, id="public-v6-passes"),
        pytest.param("64:ff9b::808:808", [], False, None, id="nat64-of-public-passes"),
        pytest.param("10.1.0.5", ["10.1.0.0/16"], False, None, id="listed-passes"),
        pytest.param("::ffff:10.1.0.5", ["10.1.0.0/16"], False, None, id="mapped-listed-passes"),
        pytest.param("fd12::1", ["10.1.0.0/16", "fd12::/32"], False, None, id="listed-v6-passes"),
        pytest.param("127.0.0.1", [], True, None, id="loopback-passes"),
        pytest.param("::1", [], True, None, id="loopback-v6-passes"),
        pytest.param("127.8.8.8", ["127.8.0.0/16"], False, None, id="loopback-listed-passes"),
    ],
)
def test_case_49_an_address_is_judged_for_what_it_is_and_for_what_it_leads_to(
    text: str, networks: list[str], loopback: bool, fault: str | None
) -> None:
    told = address_fault(ipaddress.ip_address(text), [ipaddress.ip_network(n) for n in networks], loopback=loopback)
    assert (told is None) == (fault is None), told
    assert fault is None or fault in str(told)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("::1", True)),
        *(("localhost.example.com", False), ("8.8.8.8", False), ("[::]", False), ("127.1", False)),
    ],
)
def test_this_machine_is_localhost_or_a_loopback_address(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("10.1.0.0/16", None, id="private"),
        pytest.param("10.1.0.5", None, id="one-address"),
        pytest.param("169.0.0.0/8", None, id="around-what-is-never-reached"),
        pytest.param("10.1.0.5/16", "not a network", id="host-bits"),
        pytest.param("hooks.example.com", "not a network", id="a-name"),
        pytest.param("", "not a network", id="empty"),
        pytest.param("0.0.0.0/0", "every address", id="every"),
        pytest.param("::/0", "every address", id="every-v6"),
        pytest.param("169.254.169.254/32", "never reached", id="metadata"),
        pytest.param("ff00::/16", "never reached", id="multicast"),
    ],
)
def test_a_network_of_the_list_is_one_and_has_something_to_reach(text: str, fault: str | None) -> None:
    told = network_fault(text)
    assert (told is None) == (fault is None), told
    assert fault is None or fault in str(told)


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        pytest.param("https://hooks.example.com", None, id="no-path"),
        pytest.param("https://hooks.example.com:8443/a/b?c=d", None, id="port-path-query"),
        pytest.param("https://hooks.example.com:65535/", None, id="last-port"),
        pytest.param("http://127.0.0.1:8080/x", None, id="loopback"),
        pytest.param("http://[::1]:8080/x", None, id="loopback-v6"),
        pytest.param("http://LocalHost/x", None, id="localhost-in-any-case"),
        pytest.param("https://8.8.8.8/x", None, id="public-address"),
        pytest.param("https://xn--bcher-kva.example/x", None, id="punycode"),
        pytest.param("http://hooks.example.com/", "http reaches this machine only", id="http"),
        pytest.param("http://8.8.8.8/", "http reaches this machine only", id="http-address"),
        pytest.param("http://localhost.example.com/", "http reaches this machine only", id="http-like-localhost"),
        pytest.param("https://u:p@hooks.example.com/", "without user", id="password"),
        pytest.param("https://u@hooks.example.com/", "without user", id="user"),
        pytest.param("https://hooks.example.com/#x", "without user", id="fragment"),
        pytest.param("https://hooks.example.com\\@127.0.0.1/", "without user", id="backslash"),
        pytest.param("https://hooks.example.com /", "without user", id="space"),
        pytest.param("https://hooks.example.com/\r\nHost: x", "without user", id="new-line"),
        pytest.param("https://hooks.example.com/\n", "without user", id="line-end"),
        pytest.param("https:///x", "without user", id="no-host"),
        pytest.param("https://bücher.example/", "without user", id="not-ascii"),
        pytest.param("https://[fe80::1%eth0]/", "without user", id="zone"),
        pytest.param("ftp://hooks.example.com/", "without user", id="ftp"),
        pytest.param("file:///etc/passwd", "without user", id="file"),
        pytest.param("unix:///run/x.sock", "without user", id="unix"),
        pytest.param("HTTPS://hooks.example.com/", "without user", id="scheme-in-capitals"),
        pytest.param("https://hooks.example.com?x@127.0.0.1", "without user", id="query-without-path"),
        pytest.param("https://hooks.example.com:/", "without user", id="empty-port"),
        pytest.param("https://hooks.example.com:0/", "without user", id="port-0"),
        pytest.param("https://hooks.example.com:65536/", "no port 65536", id="port-too-large"),
        pytest.param("https://hooks.example.com/" + "a" * 1024, "without user", id="too-long"),
        pytest.param("https://2130706433/", "neither a name nor an address", id="decimal"),
        pytest.param("https://0x7f000001/", "neither a name nor an address", id="hex"),
        pytest.param("https://0x7f.1/", "neither a name nor an address", id="hex-and-short"),
        pytest.param("https://127.1/", "neither a name nor an address", id="short"),
        pytest.param("https://0177.0.0.1/", "neither a name nor an address", id="octal"),
        pytest.param("https://127.0.0.0x1/", "neither a name nor an address", id="hex-at-the-end"),
        pytest.param("https://[127.0.0.1]/", "is an IPv4 address", id="brackets-around-ipv4"),
        pytest.param("https://[::g]/", "without user", id="not-hex"),
        pytest.param("https://[:::]/", "neither a name nor an address", id="not-an-address"),
        pytest.param("https://[::ffff:127.0.0.1]/", "is an IPv4 address", id="mapped"),
        pytest.param("https://[::ffff:8.8.8.8]/", "is an IPv4 address", id="mapped-public"),
        pytest.param("https://hooks.example.com./", "neither a name|not a host name", id="final-dot"),
        pytest.param("https://hooks..example.com/", "not a host name", id="empty-label"),
        pytest.param("https://-hooks.example.com/", "not a host name", id="hyphen"),
        pytest.param("https://0.0.0.0/", "this very machine, or none", id="any"),
        pytest.param("https://169.254.169.254/latest", "local link", id="metadata"),
        pytest.param("https://10.1.0.5/", "name its network in 'networks'", id="private"),
    ],
)
def test_case_49_a_url_is_of_one_reading_and_leads_where_it_may(url: str, fault: str | None) -> None:
    told = webhook_faults(document(url), "admission.webhook")
    if fault is None:
        assert told == []
        return
    assert len(told) == 1, told
    assert told[0].startswith("admission.webhook.url: ")
    assert any(part in told[0] for part in fault.split("|")), told


def test_case_49_a_private_address_needs_its_network_and_passes_with_it() -> None:
    assert webhook_faults(document("https://10.1.0.5/", networks=("10.1.0.0/16",)), "w") == []
    (fault,) = webhook_faults(document("https://10.1.0.5/", networks=("10.2.0.0/16",)), "w")
    assert "in none of its networks" in fault


@pytest.mark.parametrize(
    ("others", "fault"),
    [
        pytest.param({"key": "../etc/passwd"}, "w.key: not the name of a key", id="key-is-a-path"),
        pytest.param({"key": ""}, "w.key: not the name of a key", id="key-empty"),
        pytest.param({"timeout": "4s"}, "w.timeout: a device waits meanwhile (use at most 3s)", id="timeout-too-long"),
        pytest.param({"timeout": "1m"}, "w.timeout: a device waits meanwhile (use at most 3s)", id="timeout-a-minute"),
        pytest.param({"timeout": "0s"}, "w.timeout: '0s' is not a duration", id="timeout-zero"),
        pytest.param({"timeout": "soon"}, "w.timeout: 'soon' is not a duration", id="timeout-no-duration"),
        pytest.param({"networks": ("10.0.0.0/8", "x")}, "w.networks[1]: not a network: 'x'", id="network"),
        pytest.param({"networks": ("10.0.0.0/8",) * 65}, "w.networks: more than 64", id="too-many-networks"),
        pytest.param({"ca_pem": "nonsense"}, "w.ca_pem: not certificates in PEM", id="pem"),
        pytest.param(
            {"url": "http://localhost/", "ca_pem": "x"}, "w.ca_pem: http has nothing to verify", id="pem-http"
        ),
    ],
)
def test_a_faulty_document_is_told_with_its_key(others: dict[str, Any], fault: str) -> None:
    (told,) = webhook_faults(document(**others), "w")
    assert told.startswith(fault)


def test_all_faults_of_a_document_are_told_at_once_and_a_good_one_has_none() -> None:
    bad = document("http://x.example/", key=" ", timeout="9s", networks=("y",), ca_pem="z")
    assert [fault.split(":")[0] for fault in webhook_faults(bad, "w")] == [
        *("w.networks[0]", "w.url", "w.key", "w.timeout", "w.ca_pem")
    ]
    pem = issue("Root", is_ca=True).pem_chain.decode()
    assert webhook_faults(document(timeout="2s", networks=("10.0.0.0/8",), ca_pem=pem, signed_answer=True), "w") == []


def test_a_document_says_its_parts() -> None:
    made = document("https://[2001:DB8::1]:8443/x", timeout="2s", networks=("10.0.0.0/8",))
    assert (made.host, made.port, made.seconds, made.is_loopback) == ("2001:db8::1", 8443, 2.0, False)
    assert made.allowed == (ipaddress.ip_network("10.0.0.0/8"),)
    assert (document().port, document("http://localhost/").port, document().seconds) == (443, 80, 3.0)
    assert document("http://localhost/").is_loopback


def test_a_document_from_a_store_never_waits_longer_than_is_allowed() -> None:
    assert document(timeout="1h").seconds == 3.0


def test_a_document_takes_no_other_keys_and_needs_its_url_and_key() -> None:
    good = {"url": "https://hooks.example.com/", "key": "hooks"}
    assert msgspec.convert(good, WebhookDocument) == document("https://hooks.example.com/")
    for bad in (good | {"secret": "x"}, {"url": "x"}, {"key": "x"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, WebhookDocument)


# --- question and verdict ---------------------------------------------------------------------------------------------


def test_a_question_is_json_of_known_fields() -> None:
    assert json.loads(encode_question(QUESTION)) == {
        "request_id": "k7f3-9xq2",
        "realm": "pumps",
        "profile": "device",
        "protocol": "est",
        "operation": "enroll",
        "device": "pump-1",
        "means": ["idevid"],
        "source": "192.0.2.7",
        "asks": {"subject": "CN=pump-1", "names": ["DNS:pump-1.example.com", "DNS:other.example.com"]},
        "offer": {"names": ["DNS:pump-1.example.com", "IP:192.0.2.7"], "validity": "90d"},
        "key": {"kind": "EC P-256", "sha256": "6e" * 32},
        "idevid": {"issuer": "CN=Acme CA", "serial_number": "AC-1001", "fingerprint_sha256": "9a" * 32},
    }


@pytest.mark.parametrize(
    ("length", "text"),
    [(dt.timedelta(hours=25), "25h"), (dt.timedelta(minutes=61), "61m"), (dt.timedelta(seconds=61.5), "61s")],
)
def test_an_offered_validity_is_written_as_it_is_read(length: dt.timedelta, text: str) -> None:
    asked = dataclasses.replace(QUESTION, validity=length, device=None, idevid=None)
    told = json.loads(encode_question(asked))
    assert (told["offer"]["validity"], told["device"], told["idevid"]) == (text, None, None)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        pytest.param(b'{"allow": true}', Verdict(allow=True), id="allowed"),
        pytest.param(b'{"allow":false,"reason":"not yet"}', Verdict(allow=False, reason="not yet"), id="refused"),
        pytest.param(
            b'{"allow":true,"validity":"12h","names":["dns:Pump-1.example.com"]}',
            Verdict(allow=True, validity=dt.timedelta(hours=12), names=("DNS:pump-1.example.com",)),
            id="narrowed",
        ),
        pytest.param(
            b'{"allow":true,"names":["email:pump-1@example.com"]}',
            Verdict(allow=True, names=("email:pump-1@example.com",)),
            id="a-mailbox",
        ),
        pytest.param(b'{"allow":true,"names":[]}', Verdict(allow=True, names=()), id="no-names"),
        pytest.param(b'{"allow":true}' + b" " * (MAX_ANSWER - 14), Verdict(allow=True), id="as-large-as-may-be"),
    ],
)
def test_a_verdict_is_read(body: bytes, verdict: Verdict) -> None:
    assert read_verdict(body) == verdict


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"yes", id="no-json"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b"true", id="true-alone"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(b"{}", id="without-allow"),
        pytest.param(b'{"allow":"true"}', id="a-text"),
        pytest.param(b'{"allow":1}', id="a-number"),
        pytest.param(b'{"allow":null}', id="null"),
        pytest.param(b'{"allow":[true]}', id="in-a-list"),
        pytest.param(b'{"allow":NaN}', id="nan"),
        pytest.param(b'{"Allow":true}', id="in-capitals"),
        pytest.param(b'{"allow":true,"allow":true}', id="twice"),
        pytest.param(b'{"allow":false,"allow":true}', id="both"),
        pytest.param(b'{"allow":false,"\\u0061llow":true}', id="both-one-of-them-escaped"),
        pytest.param(b'{"allow":true,"admin":true}', id="an-unknown-key"),
        pytest.param(b'{"allow":true}{"allow":true}', id="two-of-them"),
        pytest.param(b'{"allow":true', id="cut-off"),
        pytest.param(b'{"allow":true,}', id="a-comma-too-many"),
        pytest.param(b'// yes\n{"allow":true}', id="a-comment"),
        pytest.param(b'\xef\xbb\xbf{"allow":true}', id="a-byte-order-mark"),
        pytest.param('{"allow":true}'.encode("utf-16"), id="utf-16"),
        pytest.param(b'{"allow":true,"reason":"\xff"}', id="not-utf-8"),
        pytest.param(b'{"allow":true,"reason":"\\ud800"}', id="half-a-character"),
        pytest.param(b'{"allow":true,"reason":7}', id="reason-a-number"),
        pytest.param(b'{"allow":true,"reason":null}', id="reason-null"),
        pytest.param(b'{"allow":true,"validity":null}', id="validity-null"),
        pytest.param(b'{"allow":true,"validity":3600}', id="validity-a-number"),
        pytest.param(b'{"allow":true,"validity":"-1h"}', id="validity-negative"),
        pytest.param(b'{"allow":true,"validity":"0s"}', id="validity-zero"),
        pytest.param(b'{"allow":true,"validity":"99999999d"}', id="validity-of-ages"),
        pytest.param(b'{"allow":true,"names":"DNS:a.example"}', id="names-a-text"),
        pytest.param(b'{"allow":true,"names":[null]}', id="names-null"),
        pytest.param(b'{"allow":true,"names":["a.example"]}', id="a-name-without-kind"),
        pytest.param(b'{"allow":true,"names":["email:nobody"]}', id="a-mailbox-of-no-host"),
        pytest.param(b'{"allow":true,"names":["DNS:a.example","DNS:A.example"]}', id="a-name-twice"),
        pytest.param(b'{"allow":true,"x":' + b"[" * 16_000, id="depth-in-an-unknown-key"),
        pytest.param(b"[" * 16_000, id="depth-at-once"),
        pytest.param(b'{"allow":' + b'{"allow":' * 1_700, id="depth-in-the-right-key"),
        pytest.param(b'{"allow":true,"names":' + b"[" * 16_000, id="depth-in-names"),
        pytest.param(b'{"allow":' + b"9" * 16_000 + b"}", id="a-number-of-ages"),
    ],
)
def test_case_s4_an_answer_that_is_no_verdict_refuses(body: bytes) -> None:
    with pytest.raises(NotAuthorized) as caught:
        read_verdict(body)
    assert caught.value.code == "webhook_malformed"
    assert len(caught.value.detail) < 400
    assert caught.value.detail.isprintable()


def test_case_49_an_answer_of_one_byte_too_many_refuses() -> None:
    with pytest.raises(NotAuthorized) as caught:
        read_verdict(b'{"allow":true}' + b" " * (MAX_ANSWER - 13))
    assert caught.value.code == "webhook_too_large"


def test_a_reason_is_bounded_and_printable_whatever_the_webhook_wrote() -> None:
    verdict = read_verdict(json.dumps({"allow": False, "reason": "\x1b[31m\u202ered\n" + "x" * 9000}).encode())
    assert verdict.reason.startswith("\\x1b[31m\\u202ered\\n")
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 250


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        pytest.param(Verdict(allow=True), None, id="as-it-is"),
        pytest.param(Verdict(allow=True, validity=dt.timedelta(days=90)), None, id="the-same-validity"),
        pytest.param(Verdict(allow=True, validity=dt.timedelta(seconds=1)), None, id="a-shorter-validity"),
        pytest.param(Verdict(allow=True, names=("IP:192.0.2.7",)), None, id="fewer-names"),
        pytest.param(Verdict(allow=True, names=()), None, id="no-names"),
        pytest.param(Verdict(allow=False), "webhook_refused", id="refused"),
        pytest.param(Verdict(allow=False, names=("DNS:x.example",)), "webhook_refused", id="refused-and-wider"),
        pytest.param(Verdict(allow=True, validity=dt.timedelta(days=91)), "webhook_widens", id="a-longer-validity"),
        pytest.param(Verdict(allow=True, names=("DNS:x.example",)), "webhook_widens", id="another-name"),
        # what the CSR asks for and the profile does not give
        pytest.param(Verdict(allow=True, names=("DNS:other.example.com",)), "webhook_widens", id="an-asked-name"),
    ],
)
def test_case_s4_a_verdict_may_only_narrow_or_refuse(verdict: Verdict, code: str | None) -> None:
    if code is None:
        check_narrows(verdict, QUESTION)
        return
    with pytest.raises(NotAuthorized) as caught:
        check_narrows(verdict, QUESTION)
    assert caught.value.code == code


@pytest.mark.parametrize("code", [code for code in CODES if code.startswith("webhook_")])
def test_a_device_learns_nothing_of_how_a_webhook_failed(code: str) -> None:
    refusal = webhook_refusal(code, "for the operator")
    assert refusal.message == "The operator's policy did not allow this request."
    assert refusal.detail == "for the operator"
