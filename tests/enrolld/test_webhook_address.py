"""Where a question to a realm's webhook may go, and whom it is told to over TLS (attack cases 49, S4)."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from enrolld.webhook import _session
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.tls_pki import issue
from tests.helpers.webhook_asking import NAME, Names, Pki, at, client, here, over_tls, pki, refusal
from tests.helpers.webhooks import Hook, answer, webhook

__all__ = ["pki"]  # a fixture


# --- where it goes ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _two_of_one_port(good: ssl.SSLContext, evil: ssl.SSLContext) -> AsyncIterator[tuple[Hook, Hook]]:
    async with webhook(tls=good) as one, webhook(tls=evil, host="127.0.0.2", port=one.port) as other:
        yield one, other


async def test_case_49_a_name_is_looked_up_once_and_what_was_judged_is_what_is_reached(pki: Pki) -> None:
    """DNS rebinding: the second answer would lead elsewhere, to a server that even has a certificate."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with _two_of_one_port(pki.context, pki.context) as (good, evil):
        document = over_tls(good, pki.root, networks=("127.0.0.1/32",))
        asking = client(lookup=names)
        assert (await asking.ask(document, QUESTION)).allow
        assert (names.asked, good.connections, evil.connections) == (1, 1, 0)
        refused = await refusal(document, asking)
        assert refused.code == "webhook_address"
        assert refused.detail == f"{NAME}: 127.0.0.2 is in none of its networks"
        assert (names.asked, good.connections, evil.connections) == (2, 1, 0)


async def test_case_49_a_connection_to_what_was_not_judged_is_never_made() -> None:
    """Whatever the HTTP library makes of a URL: it gets no socket."""
    async with webhook(host="127.0.0.2") as evil:
        document = at(evil)
        async with _session(document, []) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://127.0.0.2:{evil.port}/")
        assert evil.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "10.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255"),  # noqa: S104  # judged
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("fe80::1%lo", "fd00:ec2::254", "ff02::1"),
    ],
)
@pytest.mark.parametrize("beside", [[], ["8.8.8.8"]], ids=["alone", "after-a-public-one"])
async def test_case_49_a_name_with_an_address_that_may_not_be_refuses(
    pki: Pki, address: str, beside: list[str]
) -> None:
    async with webhook(tls=pki.context) as hook:
        document = over_tls(hook, pki.root, networks=())
        refused = await refusal(document, client(lookup=Names([*beside, address])))
    assert (refused.code, hook.connections) == ("webhook_address", 0)


async def test_case_49_localhost_that_leads_elsewhere_refuses() -> None:
    """Over http: whoever changes a hosts file would else read it all."""
    async with webhook(host="127.0.0.1") as hook:
        document = at(hook, url=f"http://localhost:{hook.port}/")
        refused = await refusal(document, client(lookup=Names(["8.8.8.8"])))
        assert refused.code == "webhook_address"
        assert "not this machine" in refused.detail
        assert (await client(lookup=here).ask(document, QUESTION)).allow


async def test_localhost_is_found_by_this_machine_s_resolver() -> None:
    async with webhook() as hook:
        assert (await client().ask(at(hook, url=f"http://localhost:{hook.port}/"), QUESTION)).allow


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_a_server_is_verified_for_its_name_which_it_is_told(pki: Pki) -> None:
    named: list[str | None] = []
    context = pki.of(issue(NAME, pki.root, hosts=[NAME]))
    context.sni_callback = lambda _, name, __: named.append(name)
    async with webhook(tls=context) as hook:
        assert (await client(lookup=here).ask(over_tls(hook, pki.root), QUESTION)).allow
    assert named == [NAME]
    assert hook.asked[0].headers["host"] == f"{NAME}:{hook.port}"


async def test_a_server_is_verified_for_its_address_where_the_url_has_one(pki: Pki) -> None:
    good = pki.of(issue("x", pki.root, hosts=["127.0.0.1"]))
    async with webhook(tls=good) as hook:
        assert (await client().ask(over_tls(hook, pki.root, host="127.0.0.1"), QUESTION)).allow
    async with webhook(tls=pki.context) as hook:
        assert (await refusal(over_tls(hook, pki.root, host="127.0.0.1"))).code == "webhook_tls"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda pki: pki.of(issue("x", pki.root, hosts=["x.example.com"])), id="another-name"),
        pytest.param(lambda pki: pki.of(issue(NAME, pki.root)), id="name-in-the-subject-alone"),
        pytest.param(lambda pki: pki.of(issue(NAME, hosts=[NAME])), id="self-signed"),
        pytest.param(lambda pki: pki.of(issue(NAME, issue("R", is_ca=True), hosts=[NAME])), id="unknown-ca"),
        pytest.param(
            lambda pki: pki.of(issue(NAME, issue("Webhook root", is_ca=True), hosts=[NAME])), id="like-the-ca"
        ),
        pytest.param(lambda pki: pki.expired(), id="expired"),
    ],
)
async def test_case_s4_a_server_whose_certificate_does_not_hold_gets_no_question(
    pki: Pki, make: Callable[[Pki], ssl.SSLContext]
) -> None:
    async with webhook(tls=make(pki)) as hook:
        assert (await refusal(over_tls(hook, pki.root), client(lookup=here))).code == "webhook_tls"
    assert hook.asked == []


async def test_case_s4_a_private_ca_is_not_the_system_s(pki: Pki) -> None:
    async with webhook(tls=pki.context) as hook:
        document = at(hook, url=f"https://{NAME}:{hook.port}/", networks=("127.0.0.0/8",))
        assert (await refusal(document, client(lookup=here))).code == "webhook_tls"


async def test_case_s4_a_server_without_tls_gets_no_question(pki: Pki) -> None:
    heard = b""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.read(65536)
        writer.write(answer(b"", status="400 Bad Request"))

    async with webhook(behaviour=plain) as hook:
        assert (await refusal(over_tls(hook, pki.root), client(lookup=here))).code == "webhook_tls"
    assert heard.startswith(b"\x16\x03")
    assert b"pump-1" not in heard


async def test_no_session_key_is_written_where_the_environment_says(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    root = issue("A root of its own", is_ca=True)  # contexts are kept by their CA
    async with webhook(tls=pki.of(issue(NAME, root, hosts=[NAME]))) as hook:
        assert (await client(lookup=here).ask(over_tls(hook, root), QUESTION)).allow
    assert not (tmp_path / "keys").exists()
