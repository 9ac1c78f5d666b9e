"""Attack cases 50, 52 and 53: where a request ends, what its path means, and what nobody can have signed by asking."""

import ssl
from collections.abc import Awaitable
from pathlib import Path

import pytest
from asn1crypto import cms
from cryptography import x509
from sqlalchemy import select

from ca_core.core import Core
from ca_core.records.query import Query
from ca_core.records.schema import certificate
from tests.attack_cases.field import EST as EST_PROTOCOL
from tests.attack_cases.field import Field
from tests.attack_cases.nginx import Nginx, running_nginx
from tests.attack_cases.smuggling import DOUBTFUL, ONE, REFUSED, SMUGGLED
from tests.attack_cases.talk import PATIENCE, Heard, connected, hear, talk
from tests.end_to_end import clients, scep_wire, wire
from tests.helpers.daemon import Daemon, eventually

EVERY_CERTIFICATE = Query(select(certificate.c.id))

MARKER = b"GET /pki/marker.cer HTTP/1.1\r\nHost: localhost\r\n\r\n"
TWIN = {
    "http": b"GET /pki/default-ec-1.cer HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "https": b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def say(field: Field, listener: str, request: bytes, *, answers: int | None = None, seconds: float = PATIENCE) -> Heard:
    port, tls = (field.daemon.http_port, None) if listener == "http" else (field.daemon.https_port, field.tls)
    return talk(port, request, tls=tls, source=field.source, answers=answers, seconds=seconds)


# --- 50 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", REFUSED)
def test_case_50_a_request_that_could_be_cut_apart_in_two_ways_is_refused_and_ends_the_connection(
    field: Field, case: str
) -> None:
    for listener, twin in TWIN.items():
        heard = say(field, listener, REFUSED[case])
        field.assert_refused(heard, 400, "http_malformed")
        heard.assert_closed()
        assert say(field, listener, twin, answers=1).only.status == 200
    assert field.lines("smuggled") == []


@pytest.mark.parametrize("case", DOUBTFUL)
def test_case_50_a_body_of_doubtful_framing_ends_the_connection(field: Field, case: str) -> None:
    for listener in TWIN:
        heard = say(field, listener, DOUBTFUL[case] + SMUGGLED, seconds=2.0)
        assert heard.only.status >= 400
        heard.assert_closed()
    assert field.lines("smuggled") == []


@pytest.mark.parametrize("case", ONE)
def test_case_50_an_honest_body_is_one_request_whatever_it_holds(field: Field, case: str) -> None:
    for listener in TWIN:
        port, tls = (field.daemon.http_port, None) if listener == "http" else (field.daemon.https_port, field.tls)
        with connected(port, tls=tls, source=field.source) as connection:
            connection.sendall(ONE[case])
            assert hear(connection, answers=1).only.status == (400 if b"POST" in ONE[case] else 404)
            connection.sendall(MARKER)
            after = hear(connection, answers=1)
        assert field.line(after.only.request_id)["url.path"] == "/pki/marker.cer"
        assert after.rest == b""
    assert field.lines("smuggled") == []


def test_case_50_a_hidden_request_that_is_sent_openly_is_seen(field: Field) -> None:
    """The measure of the tests above measures."""
    heard = field.http(SMUGGLED + SMUGGLED, answers=2)
    assert [answer.status for answer in heard.answers] == [404, 404]
    assert [line["url.path"] for line in field.lines("smuggled")] == ["/pki/smuggled.cer"] * 2


ALL = [*REFUSED.items(), *DOUBTFUL.items(), *ONE.items()]
GROUP = 20
"""As many refusals by one network have a log line each."""


@pytest.mark.foreign
@pytest.mark.parametrize("buffering", [pytest.param(True, id="buffered"), pytest.param(False, id="streamed")])
@pytest.mark.parametrize("first", range(0, len(ALL), GROUP))
def test_case_50_the_daemon_sees_the_requests_that_nginx_sends_it_and_no_others(
    field: Field, first: int, *, buffering: bool
) -> None:
    clients.needs("nginx")
    with running_nginx(field.daemon, field.source, buffering=buffering) as nginx:
        for _case, request in ALL[first : first + GROUP]:
            for socket in (nginx.plain, nginx.secured):
                with connected(socket) as connection:
                    connection.sendall(request)
                    hear(connection, answers=1, seconds=0.3)
                for path, status in IN_STEP[socket == nginx.secured]:
                    twin = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                    assert talk(socket, twin, answers=1).only.status == status
        assert_counted_alike(field, nginx)


IN_STEP = {
    False: [("/pki/default-ec-1.cer", 200), ("/scep?operation=GetCACaps", 200)],
    True: [("/.well-known/est/cacerts", 200), ("/.well-known/est/csrattrs", 204)],
}
"""What is asked after each: one that is out of step gets another one's answer."""


def assert_counted_alike(field: Field, nginx: Nginx) -> None:
    def counts() -> tuple[int, int]:
        return len(field.lines(field.source)), len(nginx.handed_on())

    def alike() -> bool | None:
        seen, handed_on = counts()
        return True if seen == handed_on else None

    try:
        eventually(alike, what="", seconds=15)
    except AssertionError:
        seen, handed_on = counts()
        raise AssertionError(f"the daemon saw {seen} requests, and nginx handed on {handed_on}") from None
    hidden = [each for each in nginx.handed_on() if "smuggled" in each["uri"]]
    assert len(field.lines("smuggled")) == len(hidden)


# --- 52 ---------------------------------------------------------------------------------------------------------------

EST = "/.well-known/est"
EST_TARGETS = {
    "dots": f"{EST}/../est/cacerts",
    "dots-behind-a-label": f"{EST}/default/../cacerts",
    "dots-before": f"/x/..{EST}/cacerts",
    "encoded-dots": f"{EST}/%2e%2e/est/cacerts",
    "encoded-dot": f"{EST}/%2e/cacerts",
    "dots-and-encoded-slash": f"{EST}/..%2fcacerts",
    "encoded-slash": f"{EST}/default%2fcacerts",
    "encoded-slash-in-the-prefix": "/.well-known%2fest/cacerts",
    "encoded-twice": f"{EST}/%2563acerts",
    "double-slash": f"{EST}//cacerts",
    "double-slash-before": f"/{EST}/cacerts",
    "double-slash-behind": f"{EST}/cacerts//",
    "one-dot": f"{EST}/./cacerts",
    "backslash": f"{EST}\\cacerts",
    "overlong-utf-8": f"{EST}/%c0%afcacerts",
    "nul": f"{EST}/cacerts%00",
    "space": f"{EST}/cacerts%20",
    "parameter": f"{EST}/cacerts;x",
    "fragment": f"{EST}/cacerts#x",
    "three-segments": f"{EST}/default/default/cacerts",
    "capitals": f"{EST}/CACERTS",
    "capitals-in-the-prefix": "/.WELL-KNOWN/est/cacerts",
    "absolute-form": f"https://localhost{EST}/cacerts",
    "absolute-form-of-another-host": f"http://other.example{EST}/cacerts",
}
LABELS = {"capitals": "DEFAULT", "trailing-dot": "default.", "leading-dot": ".default", "encoded-dot": "default.%2e"}
SCEP_TARGETS = {
    "dots": "/scep/../scep",
    "encoded-dots": "/scep/%2e%2e/scep",
    "encoded-slash": "/scep%2fdefault",
    "encoded-slash-behind": "/scep/default%2fpkiclient.exe",
    "double-slash": "/scep//default",
    "double-slash-before": "//scep",
    "one-dot": "/scep/.",
    "longer-word": "/scepx",
    "capitals": "/SCEP",
    "more-segments": "/scep/default/x",
    "dots-out-of-an-alias": "/cgi-bin/../scep",
    "dots-out-of-another": "/certsrv/mscep/../../scep",
    "absolute-form": "http://localhost/scep",
    "parameter": "/scep;x",
    "backslash": "/scep\\default",
}
PKI_TARGETS = {
    "dots": "/pki/../pki/default-ec-1.cer",
    "encoded-dots": "/pki/%2e%2e/pki/default-ec-1.cer",
    "dots-to-a-file": "/pki/../../etc/passwd",
    "encoded-slash": "/pki/default-ec-1%2f0.crl",
    "double-slash": "/pki//default-ec-1.cer",
    "double-slash-before": "//pki/default-ec-1.cer",
    "nul": "/pki/default-ec-1.cer%00",
    "capitals": "/PKI/default-ec-1.cer",
    "number-with-a-zero": "/pki/default-ec-1/00.crl",
}


def get(target: str, host: str = "localhost") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@pytest.mark.parametrize("target", EST_TARGETS.values(), ids=EST_TARGETS)
def test_case_52_a_path_that_is_not_plainly_one_of_est_is_not_found(field: Field, target: str) -> None:
    field.assert_refused(field.est(get(target)), 404, "operation_unknown")
    enroll = field.enroll_request(wire.body_of(field.csr())).replace(
        f"{EST}/simpleenroll".encode(), target.replace("cacerts", "simpleenroll").encode()
    )
    field.assert_refused(field.est(enroll), 404, "operation_unknown")
    assert field.certificates() == 0
    twins = [
        f"{EST}/cacerts",
        f"{EST}/cacerts/",
        f"{EST}/%63acerts",
        f"{EST}/default/cacerts",
        f"{EST}/cacerts?x=/../y",
    ]
    assert len({field.est(get(twin)).only.body for twin in twins}) == 1


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_case_52_a_label_that_is_nearly_one_is_no_realm(field: Field, label: str) -> None:
    field.assert_refused(field.est(get(f"{EST}/{label}/cacerts")), 404, "realm_unknown")
    assert field.est(get(f"{EST}/default/cacerts")).only.status == 200


@pytest.mark.parametrize("target", SCEP_TARGETS.values(), ids=SCEP_TARGETS)
def test_case_52_a_path_that_is_not_plainly_one_of_scep_is_not_found(field: Field, target: str) -> None:
    field.assert_refused(field.http(get(f"{target}?operation=GetCACert")), 404, "http_not_found")
    twins = ["/scep", "/scep/", "/scep/default", "/scep/default/", "/scep/%64efault", "/cgi-bin/pkiclient.exe"]
    assert len({field.http(get(f"{twin}?operation=GetCACert")).only.body for twin in twins}) == 1


@pytest.mark.parametrize("target", PKI_TARGETS.values(), ids=PKI_TARGETS)
def test_case_52_a_path_that_is_not_plainly_one_of_publication_is_not_found(field: Field, target: str) -> None:
    field.assert_refused(field.http(get(target)), 404, "http_not_found")
    # What everybody may read is the same in the absolute form (RFC 9112 3.2.2: "MUST accept"), whatever host it names.
    twins = ["/pki/default-ec-1.cer", "http://other.example/pki/default-ec-1.cer"]
    assert len({field.http(get(twin)).only.body for twin in twins}) == 1


def test_case_52_one_listener_does_not_serve_the_addresses_of_another(field: Field) -> None:
    field.assert_refused(field.http(get(f"{EST}/cacerts")), 404, "http_not_found")
    field.assert_refused(field.est(get("/pki/default-ec-1.cer")), 404, "operation_unknown")
    for path in ("/healthz", "/readyz", "/metrics"):
        field.assert_refused(field.http(get(path)), 404, "http_not_found")


@pytest.fixture(scope="session")
def other_host(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A realm with a host of its own, and its root."""
    daemon.ask("realm", "add", "cases", "--host", "cases.example")
    root, _ = daemon.write_anchors("cases", tmp_path_factory.mktemp("cases"))

    def shown() -> bool | None:
        try:
            heard = talk(
                daemon.https_port, get(f"{EST}/cacerts"), tls=wire.context(root), host="cases.example", answers=1
            )
        except ssl.SSLError:
            return None
        return heard.only.status == 200

    def listed() -> bool | None:
        return True if any(row.realm == "cases" for row in daemon.inspect(lambda core: core.crls.list())) else None

    eventually(shown, what="cases.example is shown")
    eventually(listed, what="the realm's first CRLs")  # which another test must not take for its own
    return "cases.example", root


def test_case_52_over_tls_the_host_header_never_chooses_the_realm(field: Field, other_host: tuple[str, Path]) -> None:
    host, root = other_host
    own, port = wire.context(root), field.daemon.https_port
    plain = field.est(get(f"{EST}/cacerts")).only.body
    there = talk(port, get(f"{EST}/cacerts", host), tls=own, host=host, source=field.source, answers=1).only.body
    assert plain != there  # two realms, told apart by the name in TLS
    assert field.est(get(f"{EST}/cacerts", host)).only.body == plain
    for said in ("localhost", host, "other.example"):
        heard = talk(port, get(f"{EST}/cacerts", said), tls=own, host=host, source=field.source, answers=1)
        assert heard.only.body == there
        heard = talk(port, get(f"{EST}/default/cacerts", said), tls=own, host=host, source=field.source, answers=1)
        field.assert_refused(heard, 404, "realm_not_here")
    bag = "/scep?operation=GetCACert"
    plain = field.est(get(bag)).only.body
    assert field.est(get(bag, host)).only.body == plain
    # Over plain HTTP nothing else tells, and a host still serves its own realm alone.
    assert field.http(get(bag)).only.body == plain
    assert field.http(get(bag, host)).only.body != plain
    field.assert_refused(field.http(get("/scep/default?operation=GetCACert", host)), 404, "realm_not_here")


# --- 53 ---------------------------------------------------------------------------------------------------------------

TIMES = 1000


def crl_numbers(field: Field) -> dict[str, int]:
    return {row.issuer: row.number for row in field.daemon.inspect(lambda core: core.crls.list())}


def signatures(field: Field) -> tuple[int, int]:
    """How many certificates and CRLs there are, over all realms."""

    def count(core: Core) -> Awaitable[tuple[int, int]]:
        async def ask() -> tuple[int, int]:
            certificates = await core.store.fetch(EVERY_CERTIFICATE)
            return len(certificates), sum(row.number for row in await core.crls.list())

        return ask()

    return field.daemon.inspect(count)


@pytest.mark.parametrize(
    ("listener", "path"),
    [
        pytest.param("http", "/pki/default-ec-1/0.crl", id="crl"),
        pytest.param("http", "/pki/default-ec-1.cer", id="ca-certificate"),
        pytest.param("http", "/scep?operation=GetCACert", id="get-ca-cert"),
        pytest.param("http", "/scep?operation=GetCACaps", id="get-ca-caps"),
        pytest.param("https", f"{EST}/cacerts", id="cacerts"),
        pytest.param("https", f"{EST}/csrattrs", id="csrattrs"),
    ],
)
def test_case_53_what_is_asked_a_thousand_times_is_the_same_bytes_and_no_signature(
    field: Field, listener: str, path: str
) -> None:
    before = signatures(field)
    one = get(path)
    port, tls = (field.daemon.http_port, None) if listener == "http" else (field.daemon.https_port, field.tls)
    answers: list[wire.Answer] = []
    with connected(port, tls=tls, source=field.source) as connection:
        for _ in range(TIMES // 4):
            connection.sendall(one * 4)
            answers += hear(connection, answers=4).answers
    assert len(answers) == TIMES
    assert {(answer.status, answer.body) for answer in answers} == {(answers[0].status, answers[0].body)}
    assert answers[0].status in (200, 204)
    assert signatures(field) == before


def test_case_53_only_what_is_due_is_signed(field: Field) -> None:
    """The daemon looks every second: of one revocation comes one CRL, of one issuer, however often it is fetched."""
    serial = format(field.assert_served(protocol=EST_PROTOCOL).serial_number, "x")
    before = crl_numbers(field)
    field.daemon.ask("cert", "revoke", serial, "--reason", "superseded")

    def published() -> bool | None:
        return True if crl_numbers(field)["default-ec-1"] > before["default-ec-1"] else None

    eventually(published, what="the CRL with the revoked certificate", seconds=10)
    crl = get("/pki/default-ec-1/0.crl")
    for _ in range(20):
        listed = x509.load_der_x509_crl(field.http(crl).only.body)
        assert listed.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None
    assert crl_numbers(field) == {**before, "default-ec-1": before["default-ec-1"] + 1}


def test_case_53_a_refusal_is_signed_by_the_ra_and_never_by_a_ca(field: Field) -> None:
    before = signatures(field)
    reply = field.scep(field.message(b"\x30\x00")).only.body
    assert scep_wire.failed(reply)
    signed = cms.ContentInfo.load(reply, strict=True)["content"]
    (signer,) = signed["signer_infos"]
    ra = x509.load_der_x509_certificate(field.ra)
    assert signer["sid"].chosen["serial_number"].native == ra.serial_number
    assert not ra.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not ra.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not ra.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    assert signatures(field) == before
