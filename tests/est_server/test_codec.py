"""EST bodies: what is read as a request, and how answers are written."""

import base64
import datetime as dt
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7

from ca_core.errors import MalformedRequest, UnsupportedMedia
from est_server.codec import (
    check_media,
    decode_request_body,
    encode_body,
    encode_ca_certificates,
    encode_certs_only,
    encode_csrattrs,
)
from tests.helpers.bad_csr import good_csr

DER = good_csr(sans=["a.example.com"])
TEXT = base64.b64encode(DER).decode()


def lines(width: int, end: str) -> bytes:
    return "".join(line + end for line in textwrap.wrap(TEXT, width)).encode()


def pem(kind: str = "CERTIFICATE REQUEST", end: str = "\n", before: str = "") -> bytes:
    return f"{before}-----BEGIN {kind}-----{end}{lines(64, end).decode()}-----END {kind}-----{end}".encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(TEXT.encode(), id="one-line"),
        pytest.param(TEXT.encode() + b"\n", id="one-line-and-line-feed"),
        pytest.param(lines(64, "\n"), id="64-columns"),
        pytest.param(lines(76, "\r\n"), id="76-columns-crlf"),
        pytest.param(b"\r\n\t  " + lines(1, " \t"), id="white-space-everywhere"),
    ],
)
def test_base64_in_any_layout_is_read(body: bytes) -> None:
    assert decode_request_body(body) == DER
    assert decode_request_body(body, strict=True) == DER


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        pytest.param(pem(), "not_base64", "The body is not base64.", id="pem"),
        pytest.param(pem(end="\r\n"), "not_base64", "The body is not base64.", id="pem-crlf"),
        pytest.param(pem("NEW CERTIFICATE REQUEST"), "not_base64", "The body is not base64.", id="pem-new"),
        pytest.param(
            pem(before="Certificate Request:\n    Version: 1 (0x0)\n"),
            "not_base64",
            "The body is not base64.",
            id="pem-after-text",
        ),
        pytest.param(DER, "not_base64", "The body is not base64.", id="der"),
    ],
)
def test_pem_and_der_are_read_unless_strict(body: bytes, code: str, message: str) -> None:
    assert decode_request_body(body) == DER
    with pytest.raises(MalformedRequest) as caught:
        decode_request_body(body, strict=True)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        pytest.param(b"", "body_empty", "The request has no body.", id="empty"),
        pytest.param(b" \r\n\t", "body_empty", "The request has no body.", id="white-space"),
        pytest.param(b"!" + TEXT.encode(), "not_base64", "The body is not base64.", id="not-alphabet"),
        pytest.param(b"AA=A", "not_base64", "The body is not base64.", id="padding-inside"),
        pytest.param(b"AAAAA", "not_base64", "The body is not base64.", id="cut-off"),
        pytest.param(b"AAA", "not_base64", "The body is not base64.", id="padding-left-out"),
        pytest.param(b"AA==AAAA", "not_base64", "The body is not base64.", id="two-texts"),
        pytest.param(b"AA-_", "not_base64", "The body is not base64.", id="base64url"),
        pytest.param(TEXT.encode() + b"\0", "not_base64", "The body is not base64.", id="nul-at-the-end"),
        pytest.param("\uff21\uff21\uff21\uff21".encode(), "not_base64", "The body is not base64.", id="wide-letters"),
        pytest.param(
            pem("CERTIFICATE"),
            "not_pkcs10",
            "The body is PEM, and not that of a certificate request.",
            id="pem-certificate",
        ),
        pytest.param(
            pem().replace(b"-----END", b"-----FIN"),
            "not_pkcs10",
            "The body is PEM, and not that of a certificate request.",
            id="pem-without-end",
        ),
        pytest.param(
            b"-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----",
            "not_base64",
            "The body is not base64.",
            id="pem-of-junk",
        ),
        pytest.param(b"0", "not_base64", "The body is not base64.", id="first-octet-of-der"),
    ],
)
def test_body_that_is_no_request_is_refused(body: bytes, code: str, message: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        decode_request_body(body)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize(
    ("content_type", "content_encoding"),
    [
        pytest.param("application/pkcs10", None, id="plain"),
        pytest.param("Application/PKCS10", None, id="case"),
        pytest.param("application/pkcs10; charset=utf-8", None, id="parameter"),
        pytest.param(" application/pkcs10 ;x=y", "identity", id="spaces-and-identity"),
        pytest.param("application/pkcs10", "", id="empty-coding"),
    ],
)
def test_pkcs10_is_taken_in_any_spelling(content_type: str, content_encoding: str | None) -> None:
    check_media(content_type, content_encoding)


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "code", "message"),
    [
        pytest.param(
            content_type,
            None,
            "content_type_wrong",
            "The Content-Type of this request must be application/pkcs10.",
            id=str(content_type),
        )
        for content_type in (None, "", "text/plain", "application/pkcs10x", "application/x-www-form-urlencoded")
    ]
    + [
        pytest.param(
            "application/pkcs10",
            coding,
            "content_coding_unsupported",
            "A body with a Content-Encoding is not read here.",
            id=coding,
        )
        for coding in ("gzip", "deflate", "identity, gzip", "GZIP")
    ],
)
def test_other_media_are_refused(
    content_type: str | None, content_encoding: str | None, code: str, message: str
) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        check_media(content_type, content_encoding)
    assert (caught.value.code, caught.value.message) == (code, message)


def certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("names", [["a"], ["a" * 60, "b"], ["a", "b" * 60, "c" * 30]], ids=["one", "two", "three"])
def test_certs_only_is_what_cryptography_writes(names: list[str]) -> None:
    certificates = [certificate(name) for name in names]
    ours = encode_certs_only([c.public_bytes(serialization.Encoding.DER) for c in certificates])
    assert ours == pkcs7.serialize_certificates(certificates, serialization.Encoding.DER)


@pytest.mark.parametrize("size", [1, 47, 48, 49, 2000])
def test_wrapped_base64_has_64_columns_and_ends_in_a_line_feed(size: int) -> None:
    written = encode_body(b"x" * size, wrap=True)
    assert written.endswith(b"\n")
    assert b"\r" not in written
    *full, last = written.decode().splitlines()
    assert all(len(line) == 64 for line in full)
    assert 0 < len(last) <= 64
    assert base64.b64decode(written) == b"x" * size


def test_unwrapped_base64_is_one_line_that_ends_in_a_line_feed() -> None:
    written = encode_body(b"x" * 2000, wrap=False)
    assert written == base64.b64encode(b"x" * 2000) + b"\n"


def test_ca_certificates_are_a_body_of_certs_only() -> None:
    der = certificate("a").public_bytes(serialization.Encoding.DER)
    assert encode_ca_certificates((der,), wrap=True) == encode_body(encode_certs_only([der]), wrap=True)
    assert encode_ca_certificates((der,), wrap=False) == encode_body(encode_certs_only([der]), wrap=False)


def test_csrattrs_are_a_sequence_of_oids() -> None:
    assert encode_csrattrs([]) == bytes.fromhex("3000")
    assert encode_csrattrs(["1.2.840.113549.1.9.7"]) == bytes.fromhex("300b06092a864886f70d010907")
    assert encode_csrattrs(["1.2.840.10045.4.3.2", "2.5.4.5"]).hex() == "300f06082a8648ce3d0403020603550405"


def test_a_transfer_coding_beside_chunked_is_refused() -> None:
    for plain in (None, "chunked", " Chunked "):
        check_media("application/pkcs10", None, plain)
    for coding in ("gzip, chunked", "gzip", "identity"):
        with pytest.raises(UnsupportedMedia) as caught:
            check_media("application/pkcs10", None, coding)
        assert caught.value.code == "content_coding_unsupported"
        assert caught.value.message == "A body with this Transfer-Encoding is not read here."
