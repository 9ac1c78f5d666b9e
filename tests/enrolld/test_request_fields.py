"""What one request is, in words of closed sets."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from ca_core.core import Core
from enrolld.request_fields import GONE, connection_fields, operation_of, outcome_of, protocol_of
from enrolld.tls import TlsPeer
from tests.helpers.core import enrolled


def request(
    *, tls: TlsPeer | None = None, path: str = "/", route: str | None = None, gone: bool = False
) -> web.Request:
    transport = None if gone else SimpleNamespace(get_extra_info=lambda _: tls)
    match = SimpleNamespace(route=SimpleNamespace(name=route))
    found: Any = SimpleNamespace(transport=transport, raw_path=path, match_info=match)
    return found  # type: ignore[no-any-return]  # a request as far as it is looked at


def peer(*chain: bytes) -> TlsPeer:
    return TlsPeer(chain, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "x25519", None, None, b"")


@pytest.mark.parametrize(
    ("status", "fields", "outcome"),
    [
        pytest.param(200, {}, "served", id="what-anybody-may-have"),
        pytest.param(200, {"enrolld.outcome": "issued"}, "issued", id="a-certificate"),
        pytest.param(202, {"enrolld.outcome": "pending"}, "pending", id="approval"),
        pytest.param(204, {}, "served", id="no-content"),
        pytest.param(304, {}, "served", id="not-modified"),
        pytest.param(200, {"event.code": "secret_wrong"}, "refused", id="a-certrep-failure"),
        pytest.param(401, {"event.code": "secret_wrong"}, "refused", id="unauthorized"),
        pytest.param(404, {}, "refused", id="not-found"),
        pytest.param(429, {"event.code": "rate_source"}, "refused", id="too-many"),
        pytest.param(500, {}, "error", id="our-fault"),
        pytest.param(503, {"event.code": "overloaded"}, "overloaded", id="no-place"),
        pytest.param(503, {"event.code": "bodies_in_all"}, "overloaded", id="no-room"),
        pytest.param(GONE, {}, "gone", id="the-peer-left"),
    ],
)
def test_an_outcome_is_one_of_seven(status: int, fields: dict[str, str], outcome: str) -> None:
    assert outcome_of(status, fields) == outcome


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        pytest.param("/scep?operation=GetCACaps", "scep", id="scep"),
        pytest.param("/certsrv/mscep/mscep.dll", "scep", id="ndes"),
        pytest.param("/.well-known/est/cacerts", "est", id="est"),
        pytest.param("/", "est", id="anything-else"),
    ],
)
def test_the_protocol_is_that_of_the_address(path: str, protocol: str) -> None:
    assert protocol_of(request(path=path), "est") == protocol


def test_an_operation_is_the_handlers_word_or_the_routes_or_unknown() -> None:
    assert operation_of(request(route="crl"), {"enrolld.operation": "PKCSReq"}) == "PKCSReq"
    assert operation_of(request(route="crl"), {}) == "crl"
    assert operation_of(request(), {}) == "unknown"


async def test_the_certificate_that_was_shown_is_named_as_ecs_wants_it(core: Core) -> None:
    one = await enrolled(core, "one")
    found = connection_fields(request(tls=peer(one.certificate, b"junk")))
    assert found == {
        "tls.version": "TLSv1.3",
        "tls.cipher": "TLS_AES_256_GCM_SHA384",
        "tls.client.x509.serial_number": one.serial.upper(),
    }


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param((), id="none"),
        pytest.param((b"",), id="empty"),
        pytest.param((b"\x30\x03junk",), id="no-certificate"),
    ],
)
def test_a_certificate_that_cannot_be_read_is_not_named(chain: tuple[bytes, ...]) -> None:
    assert "tls.client.x509.serial_number" not in connection_fields(request(tls=peer(*chain)))


@pytest.mark.parametrize("gone", [True, False])
def test_without_tls_nothing_is_said_of_it(gone: bool) -> None:
    assert connection_fields(request(gone=gone)) == {}
