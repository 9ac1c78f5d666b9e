"""Requests that two servers could cut apart differently, and their honest twins.

Each bad one hides `SMUGGLED` where one way of reading sees a body and another a request. `{}` in a request is the path
of the hidden one.
"""

__all__ = ["DOUBTFUL", "ONE", "REFUSED", "SMUGGLED"]

SMUGGLED = b"GET /pki/smuggled.cer HTTP/1.1\r\nHost: localhost\r\n\r\n"
_POST = b"POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: localhost\r\n"
_GET = b"GET /pki/nothing.cer HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_LAST = b"0\r\n\r\n"


def _length(number: int) -> bytes:
    return b"Content-Length: %d\r\n" % number


def _coded(field: bytes) -> bytes:
    """A body that is empty by its chunks and not by its length."""
    return _POST + field + b"\r\n" + _length(len(_LAST + SMUGGLED)) + b"\r\n" + _LAST + SMUGGLED


def _coded_alone(field: bytes) -> bytes:
    """A body that is empty by its chunks, if there are any."""
    return _POST + field + b"\r\n\r\n" + b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + _LAST


def _lengths(*fields: bytes) -> bytes:
    """A body of three bytes, or of more."""
    return _POST + b"".join(b"Content-Length: %b\r\n" % field for field in fields) + b"\r\nabc" + SMUGGLED


def _chunks(body: bytes) -> bytes:
    return _POST + _CHUNKED + b"\r\n" + body + SMUGGLED


REFUSED: dict[str, bytes] = {
    # both framings
    "length-and-chunks": _POST + _length(len(_LAST + SMUGGLED)) + _CHUNKED + b"\r\n" + _LAST + SMUGGLED,
    "chunks-and-length": _POST + _CHUNKED + _length(4) + b"\r\n" + _LAST + SMUGGLED,
    # a Transfer-Encoding that one server takes for chunked and another for nothing
    "coding-unknown": _coded(b"Transfer-Encoding: xchunked"),
    "coding-space-before-colon": _coded(b"Transfer-Encoding : chunked"),
    "coding-tab-before-colon": _coded(b"Transfer-Encoding\t: chunked"),
    "coding-tab-after-colon": _coded(b"Transfer-Encoding:\tchunked"),
    "coding-vertical-tab": _coded(b"Transfer-Encoding: \x0bchunked"),
    "coding-not-last": _coded(b"Transfer-Encoding: chunked, identity"),
    "coding-identity": _coded(b"Transfer-Encoding: identity"),
    "coding-twice": _coded(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "coding-twice-alone": _coded_alone(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "coding-unknown-after": _coded(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    "coding-unknown-before": _coded_alone(b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
    "coding-parameter": _coded_alone(b"Transfer-Encoding: chunked;q=1"),
    "coding-quoted": _coded_alone(b'Transfer-Encoding: "chunked"'),
    "coding-nul": _coded_alone(b"Transfer-Encoding: chunked\0"),
    "coding-trailing-comma": _coded_alone(b"Transfer-Encoding: chunked,"),
    "coding-latin-1": _coded_alone(b"Transfer-Encoding: chunked\xa0"),
    "coding-two-colons": _coded_alone(b"Transfer-Encoding:: chunked"),
    "coding-folded": _coded_alone(b"Transfer-Encoding:\r\n chunked"),
    "coding-in-a-folded-line": _coded(b"X: y\r\n Transfer-Encoding: chunked"),
    "coding-after-a-bare-lf": _coded(b"X: y\nTransfer-Encoding: chunked"),
    "coding-after-a-bare-cr": _coded(b"X: y\rTransfer-Encoding: chunked"),
    "coding-with-leading-space": _coded(b" Transfer-Encoding: chunked"),
    # lengths
    "lengths-that-differ": _lengths(b"3", b"%d" % (3 + len(SMUGGLED))),
    "lengths-that-agree": _lengths(b"3", b"3"),
    "length-list": _lengths(b"3, %d" % (3 + len(SMUGGLED))),
    "length-list-that-agrees": _lengths(b"3, 3"),
    "length-plus": _lengths(b"+3"),
    "length-minus": _lengths(b"-3"),
    "length-hexadecimal": _lengths(b"0x3"),
    "length-inner-space": _lengths(b"3 3"),
    "length-underscore": _lengths(b"0_3"),
    "length-empty": _lengths(b""),
    "length-fraction": _lengths(b"3.0"),
    "length-parameter": _lengths(b"3;x"),
    "length-full-width": _lengths("\uff13".encode()),
    "length-beyond-64-bits": _lengths(b"9" * 30),
    "length-space-before-colon": _POST + b"Content-Length : 3\r\n\r\nabc" + SMUGGLED,
    "length-folded": _POST + b"Content-Length:\r\n 3\r\n\r\nabc" + SMUGGLED,
    # chunks
    "chunk-terminator-any-two-bytes": _chunks(b"3\r\nabcXX" + _LAST),
    "chunk-terminator-lf": _chunks(b"3\r\nabc\n" + _LAST),
    "chunk-terminator-cr": _chunks(b"3\r\nabc\r" + _LAST),
    "chunk-terminator-missing": _chunks(b"3\r\nabc" + _LAST),
    "chunk-size-ends-in-lf": _chunks(b"3\nabc\r\n" + _LAST),
    "chunk-size-ends-in-cr": _chunks(b"3\rabc\r\n" + _LAST),
    "chunks-in-lf-alone": _chunks(b"3\nabc\n0\n\n"),
    "chunk-last-ends-in-lf": _chunks(b"3\r\nabc\r\n0\n\n"),
    "chunk-last-without-end": _chunks(b"3\r\nabc\r\n0\r\n"),
    "chunk-size-0x": _chunks(b"0x3\r\nabc\r\n" + _LAST),
    "chunk-size-plus": _chunks(b"+3\r\nabc\r\n" + _LAST),
    "chunk-size-minus": _chunks(b"-3\r\nabc\r\n" + _LAST),
    "chunk-size-underscore": _chunks(b"0_3\r\nabc\r\n" + _LAST),
    "chunk-size-empty": _chunks(b"\r\nabc\r\n" + _LAST),
    "chunk-size-beyond-64-bits": _chunks(b"10000000000000003\r\nabc\r\n" + _LAST),
    "chunk-size-leading-space": _chunks(b" 3\r\nabc\r\n" + _LAST),
    "chunk-size-trailing-space": _chunks(b"3 \r\nabc\r\n" + _LAST),
    "chunk-extension-after-space": _chunks(b"3 ;a=b\r\nabc\r\n" + _LAST),
    "chunk-extension-with-bare-lf": _chunks(b"3;\nxx\r\nabc\r\n" + _LAST),
    "chunk-extension-with-quoted-crlf": _chunks(b'3;a="\r\nabc\r\n0\r\n\r\n"\r\n' + _LAST),
    "chunk-extension-with-nul": _chunks(b"3;\0\r\nabc\r\n" + _LAST),
    "trailer-of-a-length": _chunks(b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n"),
    "trailer-of-a-coding": _chunks(b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "trailer-of-a-host": _chunks(b"3\r\nabc\r\n0\r\nHost: other.example\r\n\r\n"),
    "trailer-that-is-none": _chunks(b"3\r\nabc\r\n0\r\nX y\r\n\r\n"),
    # lines
    "lines-in-lf-alone": (_POST + _length(3) + b"\r\n").replace(b"\r\n", b"\n") + b"abc" + SMUGGLED,
    "one-line-in-lf": _POST + b"X: y\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "folded-line": _POST + b"X: y\r\n z\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "space-before-colon": _POST + b"X : y\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "field-without-name": _POST + b": y\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "field-with-nul": _POST + b"X: \0y\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "field-with-bare-cr": _POST + b"X: a\rb\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "two-hosts": _POST + b"Host: other.example\r\n" + _length(3) + b"\r\nabc" + SMUGGLED,
    "target-of-two": b"GET /pki/a.cer /pki/b.cer HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    # HTTP/1.0 knows no chunks
    "http-1-0-with-both": _POST.replace(b"HTTP/1.1", b"HTTP/1.0") + _CHUNKED + _length(4) + b"\r\n" + _LAST + SMUGGLED,
    "http-1-0-with-chunks": _POST.replace(b"HTTP/1.1", b"HTTP/1.0") + _CHUNKED + b"\r\n" + _LAST + SMUGGLED,
    # nothing may follow
    "request-after-close": _POST + _length(3) + b"Connection: close\r\n\r\nabc" + SMUGGLED,
}
"""All are `http_malformed`, and end the connection."""

DOUBTFUL: dict[str, bytes] = {
    "coding-empty": _coded(b"Transfer-Encoding:"),
    "coding-gzip-and-chunked": _coded_alone(b"Transfer-Encoding: gzip, chunked"),
    "coding-identity-and-chunked": _coded_alone(b"Transfer-Encoding: identity, chunked"),
    "coding-after-a-comma": _coded_alone(b"Transfer-Encoding: ,chunked"),
    "http-1-0-with-chunks-kept-alive": (
        _POST.replace(b"HTTP/1.1", b"HTTP/1.0")
        + b"Connection: keep-alive\r\n"
        + _CHUNKED
        + b"\r\n%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED)
        + _LAST
    ),
}
"""A body whose framing is doubtful (RFC 9112 6.1): whatever is answered, nothing more may be read after it."""

ONE: dict[str, bytes] = {
    "length": _POST + _length(len(SMUGGLED)) + b"\r\n" + SMUGGLED,
    "length-with-zeros": _POST + b"Content-Length: 000%d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "length-with-space": _POST + b"Content-Length:   %d \r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "underscore-is-another-field": _POST + b"Transfer_Encoding: chunked\r\n" + _length(5) + b"\r\n" + _LAST,
    "chunks": _coded_alone(b"Transfer-Encoding: chunked"),
    "chunks-in-capitals": _coded_alone(b"TRANSFER-ENCODING: CHUNKED"),
    "chunk-extension": _POST + _CHUNKED + b"\r\n%x;a=b\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + _LAST,
    "chunk-extension-quoted": _POST + _CHUNKED + b'\r\n%x;a="b;c"\r\n%b\r\n' % (len(SMUGGLED), SMUGGLED) + _LAST,
    "chunk-size-with-zeros": _POST + _CHUNKED + b"\r\n000%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + b"00\r\n\r\n",
    "last-chunk-extension": _POST + _CHUNKED + b"\r\n3\r\nabc\r\n0;a=b\r\n\r\n",
    "trailer": _POST + _CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "get-with-a-body": _GET + _length(len(SMUGGLED)) + b"\r\n" + SMUGGLED,
    "get-in-chunks": _GET + _CHUNKED + b"\r\n%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + _LAST,
    "upgrade-to-h2c": (
        _POST
        + _length(len(SMUGGLED))
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        + SMUGGLED
    ),
    "expects-100": _POST + _length(len(SMUGGLED)) + b"Expect: 100-continue\r\n\r\n" + SMUGGLED,
}
"""The twins: one request each, whose body holds the hidden one or nothing, and after which the connection goes on."""
