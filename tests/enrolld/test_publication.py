"""What is published over plain HTTP: the bytes of the store, with the right types, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ca_core.errors import Unavailable
from enrolld import publication

CRL = b"\x30\x03crl"
CERTIFICATE = b"\x30\x03cer"


class Desk:
    """Hands out what it is given, and counts how often it is asked."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.asked: list[str] = []
        self.is_away = False

    async def latest(self, issuer: str) -> bytes | None:
        self.asked.append(issuer)
        if self.is_away:
            raise Unavailable("the database can't be used")
        return self.content.get(issuer)

    certificate = latest


class Published:
    """A core as publication sees it: nothing in it can sign."""

    def __init__(self) -> None:
        self.crls = Desk({"default-ec-1": CRL})
        self.issuers = Desk({"default-ec-1": CERTIFICATE, "default-root-1": b"root"})


@contextmanager
def app_of(core: Published) -> Iterator[web.Application]:
    app = web.Application()
    publication.add_routes(app, core)
    yield app


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        pytest.param("/pki/default-ec-1/0.crl", "application/pkix-crl", CRL, id="crl"),
        pytest.param("/pki/default-ec-1.cer", "application/pkix-cert", CERTIFICATE, id="issuing-ca"),
        pytest.param("/pki/default-root-1.cer", "application/pkix-cert", b"root", id="root"),
    ],
)
async def test_what_is_in_the_store_is_served_as_der(path: str, media_type: str, body: bytes) -> None:
    with app_of(Published()) as app:
        async with TestClient(TestServer(app)) as client:
            response = await client.get(path)
            assert (response.status, response.content_type, await response.read()) == (200, media_type, body)
            head = await client.head(path)
            assert (head.status, head.headers["Content-Length"]) == (200, str(len(body)))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/pki/default-ec-2.cer", id="another-generation"),
        pytest.param("/pki/default-root-1/0.crl", id="issuer-without-crl"),
        pytest.param("/pki/default-ec-1/1.crl", id="another-shard"),
        pytest.param("/pki/default-ec-1/00.crl", id="shard-spelled-otherwise"),
        pytest.param("/pki/default-ec-1", id="no-suffix"),
        pytest.param("/pki/default-ec-1.crl", id="no-shard"),
        pytest.param("/pki/DEFAULT-EC-1.cer", id="upper-case"),
        pytest.param("/pki/..%2Fdefault-ec-1.cer", id="traversal"),
        pytest.param("/pki/" + "a" * 200 + ".cer", id="long-name"),
        pytest.param("/pki/", id="folder"),
        pytest.param("/", id="root"),
        pytest.param("/.well-known/est/cacerts", id="est-needs-https"),
    ],
)
async def test_anything_else_is_not_found(path: str) -> None:
    core = Published()
    with app_of(core) as app:
        async with TestClient(TestServer(app)) as client:
            response = await client.get(path)
            assert response.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_only_reading_is_served(method: str) -> None:
    core = Published()
    with app_of(core) as app:
        async with TestClient(TestServer(app)) as client:
            assert (await client.request(method, "/pki/default-ec-1/0.crl")).status == 405
            assert (await client.request("GET", "/pki/default-ec-1/0.crl")).status == 200
    assert core.crls.asked == ["default-ec-1"]


async def test_a_crl_that_did_not_change_is_not_sent_again() -> None:
    core = Published()
    with app_of(core) as app:
        async with TestClient(TestServer(app)) as client:
            first = await client.get("/pki/default-ec-1/0.crl")
            asking: dict[str, Any] = {"headers": {"If-None-Match": first.headers["ETag"]}}
            again = await client.get("/pki/default-ec-1/0.crl", **asking)
            assert (again.status, await again.read()) == (304, b"")
            core.crls.content["default-ec-1"] = b"\x30\x03new"
            newer = await client.get("/pki/default-ec-1/0.crl", **asking)
            assert (newer.status, await newer.read()) == (200, b"\x30\x03new")
            assert newer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["/pki/default-ec-1/0.crl", "/pki/default-ec-1.cer"], ids=["crl", "certificate"])
async def test_while_the_store_is_away_what_was_shown_before_is_shown(path: str) -> None:
    core = Published()
    with app_of(core) as app:
        async with TestClient(TestServer(app)) as client:
            before = await client.get(path)
            core.crls.is_away = core.issuers.is_away = True
            again = await client.get(path)
            assert (again.status, await again.read()) == (200, await before.read())
            assert again.headers["ETag"] == before.headers["ETag"]
            never_shown = await client.get(path.replace("ec", "rsa"))
            assert (never_shown.status, never_shown.headers["Retry-After"]) == (503, "5")
            core.crls.is_away = core.issuers.is_away = False
            core.crls.content["default-ec-1"] = core.issuers.content["default-ec-1"] = b"new"
            assert await (await client.get(path)).read() == b"new"
