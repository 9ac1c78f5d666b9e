"""What a peer offers, and whether its CSR belongs to its TLS connection."""

import base64

import pytest

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, PopFailed
from ca_core.model import Evidence, TlsPeer
from est_server.authentication import check_channel_binding, read_evidence
from tests.helpers import bad_csr as make
from tests.helpers.bad_csr import ec_key, good_csr, make_csr, name

ANONYMOUS = TlsPeer("TLSv1.3")
WITH_CERTIFICATE = TlsPeer("TLSv1.3", chain=(b"leaf", b"intermediate"))


def basic(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


@pytest.mark.parametrize(
    ("header", "username", "secret"),
    [
        pytest.param(basic(b"device-1:s3cret"), "device-1", "s3cret", id="plain"),
        pytest.param(basic(b":s3cret"), "", "s3cret", id="empty-user-name"),
        pytest.param(basic(b"device-1:"), "device-1", "", id="empty-secret"),
        pytest.param(basic(b"device-1:a:b"), "device-1", "a:b", id="colon-in-secret"),
        pytest.param(basic(b"device-1:s3cret").replace("Basic", "bAsIc"), "device-1", "s3cret", id="scheme-case"),
        pytest.param(basic(b"device-1:s3cret").replace(" ", "   ") + " ", "device-1", "s3cret", id="spaces"),
        pytest.param(basic(b"device-1:s3cret\0\xff\x01junk"), "device-1", "s3cret", id="nul-and-junk"),
        pytest.param(basic("gerät:süß".encode()), "gerät", "süß", id="utf-8"),
        pytest.param(basic("gerät:süß".encode("latin-1")), "gerät", "süß", id="latin-1"),
    ],
)
def test_user_name_and_secret_are_read(header: str, username: str, secret: str) -> None:
    assert read_evidence(ANONYMOUS, [header]) == Evidence(chain=(), username=username, secret=secret)


def test_certificate_alone_is_evidence() -> None:
    assert read_evidence(WITH_CERTIFICATE, []) == Evidence(chain=(b"leaf", b"intermediate"))


def test_certificate_and_secret_are_both_evidence() -> None:
    evidence = read_evidence(WITH_CERTIFICATE, [basic(b"None:None")])
    assert evidence == Evidence(chain=(b"leaf", b"intermediate"), username="None", secret="None")


@pytest.mark.parametrize("header", ["Bearer abc", 'Digest username="x"', "Basically x", ""])
def test_certificate_goes_with_a_scheme_that_is_not_spoken(header: str) -> None:
    assert read_evidence(WITH_CERTIFICATE, [header]) == Evidence(chain=(b"leaf", b"intermediate"))


UNREADABLE = "The Authorization header is not base64 of user:secret."
OTHER_SCHEME = "The Authorization header is not of the Basic scheme."
MISSING = "This request needs a client certificate, or a secret as the Basic password."


@pytest.mark.parametrize(
    ("headers", "code", "message"),
    [
        pytest.param([], "credentials_missing", MISSING, id="nothing"),
        pytest.param(["Bearer abc"], "credentials_malformed", OTHER_SCHEME, id="other-scheme"),
        pytest.param([""], "credentials_malformed", OTHER_SCHEME, id="empty-header"),
        pytest.param(["Basic"], "credentials_malformed", UNREADABLE, id="no-parameter"),
        pytest.param(["Basic !"], "credentials_malformed", UNREADABLE, id="not-base64"),
        pytest.param(["Basic YWJj\u00e9"], "credentials_malformed", UNREADABLE, id="not-ascii"),
        pytest.param(["Basic YWJj\udcff"], "credentials_malformed", UNREADABLE, id="surrogate"),
        pytest.param([basic(b"no colon")], "credentials_malformed", UNREADABLE, id="no-colon"),
        pytest.param(
            [basic(b"a:b"), basic(b"c:d")],
            "credentials_malformed",
            "The request has more than one Authorization header.",
            id="two-headers",
        ),
    ],
)
def test_evidence_that_is_missing_or_unreadable_is_refused(headers: list[str], code: str, message: str) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        read_evidence(ANONYMOUS, headers)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(read_evidence(ANONYMOUS, [basic(b"device-1:s3cret")]))


TLS_12 = TlsPeer("TLSv1.2", tls_unique=b"u" * 12)
TLS_13 = TlsPeer("TLSv1.3", tls_exporter=b"e" * 32)
UNIQUE = base64.b64encode(b"u" * 12).decode()
EXPORTER = base64.b64encode(b"e" * 32).decode()


def linked(value: str | bytes | None, *, identity_linking: str | None = None) -> ParsedCsr:
    attributes = [] if value is None else [make.challenge(value)]
    if identity_linking is not None:
        attributes.append(make.attribute(make.IDENTITY_LINKING, make.utf8(identity_linking)))
    return ParsedCsr.parse(make_csr(ec_key(), name("device-1"), *attributes))


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize(
    ("peer", "csr"),
    [
        pytest.param(TLS_12, linked(UNIQUE), id="tls-unique"),
        pytest.param(TLS_13, linked(EXPORTER), id="tls-exporter"),
        pytest.param(TLS_12, linked(make.utf8(UNIQUE)), id="utf8-string"),
        pytest.param(TLS_12, linked(make.tlv(0x14, UNIQUE.encode())), id="t61-string"),
        pytest.param(TLS_12, linked(make.ia5(UNIQUE.encode() + b"\n")), id="line-feed-after-it"),
        pytest.param(TLS_13, linked(None, identity_linking=EXPORTER), id="identity-linking"),
        pytest.param(TLS_13, linked("a secret", identity_linking=EXPORTER), id="identity-linking-comes-first"),
    ],
)
def test_csr_made_for_this_connection_passes(peer: TlsPeer, csr: ParsedCsr, required: bool) -> None:
    check_channel_binding(csr, peer, required=required)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize(
    ("peer", "csr"),
    [
        pytest.param(TLS_12, linked(base64.b64encode(b"v" * 12).decode()), id="other-connection"),
        pytest.param(TLS_12, linked(EXPORTER), id="exporter-on-tls-1.2"),
        pytest.param(TLS_13, linked(UNIQUE), id="unique-on-tls-1.3"),
        pytest.param(TLS_13, linked("k7f3-9xq2"), id="a-password"),
        pytest.param(TLS_13, linked(make.utf8("süß")), id="not-ascii"),
        pytest.param(TLS_13, linked(EXPORTER[:-1]), id="one-character-less"),
        pytest.param(TLS_13, linked(EXPORTER, identity_linking="x"), id="identity-linking-wrong"),
        pytest.param(TlsPeer("TLSv1.3"), linked(EXPORTER), id="connection-without-binding"),
        pytest.param(TlsPeer("TLSv1.2", tls_unique=b""), linked("="), id="empty-binding"),
    ],
)
def test_csr_made_for_another_connection_is_refused(peer: TlsPeer, csr: ParsedCsr, required: bool) -> None:
    with pytest.raises(PopFailed) as caught:
        check_channel_binding(csr, peer, required=required)
    assert (caught.value.code, caught.value.message) == (
        "channel_binding_mismatch",
        "The CSR's challengePassword does not link it to this TLS session (RFC 7030 3.5).",
    )


@pytest.mark.parametrize("csr", [linked(None), linked("")], ids=["absent", "empty"])
def test_csr_without_link_is_refused_only_where_one_is_required(csr: ParsedCsr) -> None:
    check_channel_binding(csr, TLS_13, required=False)
    with pytest.raises(PopFailed) as caught:
        check_channel_binding(csr, TLS_13, required=True)
    assert (caught.value.code, caught.value.message) == (
        "channel_binding_missing",
        "The CSR must be linked to the TLS session by its challengePassword (RFC 7030 3.5).",
    )


def test_good_csr_carries_no_link() -> None:
    assert ParsedCsr.parse(good_csr()).challenge_password is None
