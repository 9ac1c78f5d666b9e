"""A realm's webhook that lies: whatever is not an answer, or not signed as it must be, refuses (cases 49, S4)."""

import asyncio
import dataclasses
import functools
import hashlib
import hmac
from collections.abc import Callable

import pytest

from ca_core.errors import NotAuthorized, Unavailable
from ca_core.registration.admission.webhook import MAX_ANSWER
from enrolld.webhook import WebhookClient
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.webhook_asking import HEAD, KEY, at, client, refusal
from tests.helpers.webhooks import ALLOWED, Asked, answer, read_request, webhook

LONG = ALLOWED + b" " * (17 * 1024 - len(ALLOWED))


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("201 Created", "202 Accepted")),
        pytest.param(answer(b"", status="204 No Content"), "webhook_status", id="204 No Content"),
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("206 Partial Content", "404 Not Found")),
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("401 Unauthorized", "500 Oh", "999 X")),
        pytest.param(answer(status="101 Switching Protocols", more="Upgrade: x\r\n"), "webhook_status", id="upgrade"),
        pytest.param(answer(b"<html>", kind="text/html"), "webhook_malformed", id="html"),
        pytest.param(answer(kind="text/plain"), "webhook_malformed", id="json-as-text"),
        pytest.param(answer(kind="application/json+x"), "webhook_malformed", id="another-json"),
        pytest.param(answer(kind=""), "webhook_malformed", id="no-content-type"),
        pytest.param(answer(more="Content-Type: text/html\r\n"), "webhook_malformed", id="two-content-types"),
        pytest.param(answer(more="Content-Encoding: gzip\r\n"), "webhook_malformed", id="gzip"),
        pytest.param(answer(b""), "webhook_malformed", id="empty"),
        pytest.param(answer(b'{"allow": "true"}'), "webhook_malformed", id="allow-as-text"),
        pytest.param(answer(b'{"allow": true'), "webhook_malformed", id="cut-off-json"),
        pytest.param(answer(b'{"allow": true, "validity": "91d"}'), "webhook_widens", id="a-longer-validity"),
        pytest.param(answer(b'{"allow": true, "names": ["DNS:x.example"]}'), "webhook_widens", id="another-name"),
        pytest.param(answer(LONG), "webhook_too_large", id="17-kib"),
        pytest.param(answer(b"[" * 1_000_000), "webhook_too_large", id="a-megabyte"),
        pytest.param(HEAD + b"\r\n" + LONG, "webhook_too_large", id="17-kib-to-the-end"),
        pytest.param(HEAD + b"Content-Length: 99\r\n\r\n" + ALLOWED, "webhook_malformed", id="hangs-up-midway"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{", "webhook_malformed", id="midway-in-a-piece"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "webhook_malformed", id="a-piece-of-no-size"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", "webhook_malformed", id="a-negative-length"),
        pytest.param(b"yes\r\n\r\n", "webhook_malformed", id="no-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", "webhook_malformed", id="tls"),
        pytest.param(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n", "webhook_malformed", id="a-long-header"),
        pytest.param(HEAD + b"X: x\r\n" * 1000 + b"\r\n", "webhook_malformed", id="many-headers"),
    ],
)
async def test_case_s4_whatever_is_not_an_answer_refuses(reply: bytes, code: str) -> None:
    async with webhook(reply) as hook:
        assert (await refusal(at(hook))).code == code
    assert hook.connections == 1


async def test_the_largest_answer_that_may_be_is_read() -> None:
    async with webhook(answer(ALLOWED + b" " * (MAX_ANSWER - len(ALLOWED)))) as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_case_49_a_redirect_refuses_and_is_not_followed(status: int) -> None:
    async with webhook() as elsewhere:
        to = f"Location: http://127.0.0.1:{elsewhere.port}/\r\n"
        async with webhook(answer(b"", status=f"{status} Over there", more=to)) as hook:
            refused = await refusal(at(hook))
    assert (refused.code, refused.detail) == ("webhook_redirect", f"status {status}")
    assert elsewhere.connections == 0


async def test_case_49_an_answer_that_never_ends_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
            await writer.drain()
            sent += 4096

    async with webhook(behaviour=endless) as hook:
        assert (await refusal(at(hook))).code == "webhook_too_large"
    assert sent < 8_000_000  # what sockets hold, and no more


# --- keys -------------------------------------------------------------------------------------------------------------


def signed(asked: Asked, body: bytes, key: bytes = KEY) -> bytes:
    """An answer, signed for what was asked."""
    context = asked.headers["enrolld-signature"].removeprefix("v1=").encode()
    value = hmac.new(key, context + b"." + body, hashlib.sha256).hexdigest()
    return answer(body, more=f"Enrolld-Signature: v1={value}\r\n")


async def test_an_answer_signed_for_its_question_is_believed() -> None:
    async with webhook(lambda asked: signed(asked, ALLOWED)) as hook:
        assert (await client().ask(at(hook, signed_answer=True), QUESTION)).allow
        assert (await client().ask(at(hook), QUESTION)).allow


async def test_case_49_what_is_too_large_is_not_even_looked_at_for_its_signature() -> None:
    async with webhook(lambda asked: signed(asked, LONG)) as hook:
        assert (await refusal(at(hook, signed_answer=True))).code == "webhook_too_large"


def _altered(asked: Asked) -> bytes:
    return signed(asked, b'{"allow":false}').replace(b"false", b" true")


def _mirrored(asked: Asked) -> bytes:
    return answer(more=f"Enrolld-Signature: {asked.headers['enrolld-signature']}\r\n")


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        pytest.param(lambda _: answer(), "not signed", id="not-signed"),
        pytest.param(lambda _: answer(more="Enrolld-Signature: v1=\r\n"), "signed otherwise", id="empty"),
        pytest.param(functools.partial(signed, body=ALLOWED, key=b"x" * 32), "signed otherwise", id="another-key"),
        pytest.param(_altered, "signed otherwise", id="altered"),
        pytest.param(_mirrored, "signed otherwise", id="the-request-s-own"),
        pytest.param(lambda _: answer(more="Enrolld-Signature: \xe9\r\n"), "signed otherwise", id="not-ascii"),
        pytest.param(
            lambda _: answer(more="Enrolld-Signature: X\r\n").replace(b"X", b"\xe9"), "signed otherwise", id="not-utf-8"
        ),
    ],
)
async def test_case_s4_an_answer_that_is_not_signed_as_it_must_be_refuses(
    reply: Callable[[Asked], bytes], detail: str
) -> None:
    async with webhook(reply) as hook:
        refused = await refusal(at(hook, signed_answer=True))
    assert (refused.code, refused.detail) == ("webhook_unsigned", detail)


async def test_case_s4_an_answer_to_another_question_is_not_believed_again() -> None:
    kept: list[bytes] = []

    def first_one_again(asked: Asked) -> bytes:
        kept.append(signed(asked, ALLOWED))
        return kept[0]

    async with webhook(first_one_again) as hook:
        asking = client()
        assert (await asking.ask(at(hook, signed_answer=True), QUESTION)).allow
        with pytest.raises(NotAuthorized) as caught:
            await asking.ask(at(hook, signed_answer=True), dataclasses.replace(QUESTION, device="pump-2"))
    assert caught.value.code == "webhook_unsigned"


async def test_case_s4_without_the_key_nothing_is_asked_and_the_device_may_come_again() -> None:
    async with webhook() as hook:
        with pytest.raises(Unavailable, match=r"webhook of realm pumps needs the key 'hooks'.*\[webhook_keys\]"):
            await WebhookClient({}).ask(at(hook), QUESTION)
    assert hook.connections == 0
