"""A realm's webhook that answers as it should, over real connections.

What lies is in `test_webhook_answers`, what stalls or dies in `test_webhook_failures`, and where a question may go in
`test_webhook_address`.
"""

import datetime as dt
import hashlib
import hmac
import json
from pathlib import Path

import pytest

from ca_core.codes import CODES
from ca_core.registration.admission.webhook import Verdict, webhook_faults
from enrolld.metrics.counts import Counts
from enrolld.metrics.meter import WorkerMeter
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.tls_pki import issue
from tests.helpers.webhook_asking import KEY, Pki, at, client, here, pki, refusal
from tests.helpers.webhooks import answer, webhook

__all__ = ["pki"]  # a fixture


async def test_a_question_is_signed_and_its_answer_is_the_verdict() -> None:
    async with webhook(answer(b'{"allow": true, "validity": "12h", "names": ["IP:192.0.2.7"]}')) as hook:
        verdict = await client(clock=lambda: 1764446400.9).ask(at(hook), QUESTION)
    assert verdict == Verdict(allow=True, validity=dt.timedelta(hours=12), names=("IP:192.0.2.7",))
    (asked,) = hook.asked
    assert asked.line == "POST /ask?x=1 HTTP/1.1"
    assert json.loads(asked.body)["device"] == "pump-1"
    signed = hmac.new(KEY, b"1764446400." + asked.body, hashlib.sha256).hexdigest()
    assert asked.headers == {
        "host": f"127.0.0.1:{hook.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(asked.body)),
        "user-agent": "enrolld",
        "connection": "close",
        "enrolld-request-id": "k7f3-9xq2",
        "enrolld-timestamp": "1764446400",
        "enrolld-signature": f"v1={signed}",
    }


async def test_case_s4_a_webhook_that_says_no_refuses_with_its_reason() -> None:
    async with webhook(answer(b'{"allow": false, "reason": "not on the list"}')) as hook:
        refused = await refusal(at(hook))
    assert (refused.code, refused.detail) == ("webhook_refused", "not on the list")


@pytest.mark.parametrize("host", ["[::1]", "[0:0:0:0:0:0:0:1]"])
async def test_a_url_may_name_an_ipv6_address(host: str) -> None:
    async with webhook(host="::1") as hook:
        document = at(hook, url=f"http://{host}:{hook.port}/")
        assert webhook_faults(document, "w") == []
        assert (await client().ask(document, QUESTION)).allow


async def test_names_of_every_form_that_a_document_takes_are_asked(pki: Pki) -> None:
    host = "my_hooks-1.xn--bcher-kva.example"
    async with webhook(tls=pki.of(issue("x", pki.root, hosts=[host]))) as hook:
        url = f"https://{host.upper()}:{hook.port}/a%zz/~b;c=(d),e?f=%20&g"
        document = at(hook, url=url, ca_pem=pki.root.pem_chain.decode(), networks=("127.0.0.1",))
        assert webhook_faults(document, "w") == []
        assert (await client(lookup=here).ask(document, QUESTION)).allow
    assert hook.asked[0].line == "POST /a%zz/~b;c=(d),e?f=%20&g HTTP/1.1"


async def test_nothing_of_one_call_is_left_for_the_next() -> None:
    async with webhook(answer(more="Set-Cookie: a=b\r\nConnection: keep-alive\r\n")) as hook:
        asking = client()
        for _ in range(2):
            await asking.ask(at(hook), QUESTION)
    assert hook.connections == 2
    assert [asked for asked in hook.asked if "cookie" in asked.headers] == []


async def test_proxies_and_passwords_of_the_environment_are_not_the_webhook_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with webhook() as hook, webhook() as proxy:
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        await client().ask(at(hook), QUESTION)
    assert (len(hook.asked), proxy.connections) == (1, 0)
    assert "authorization" not in hook.asked[0].headers


async def test_an_interim_answer_comes_before_the_answer() -> None:
    async with webhook(b"HTTP/1.1 100 Continue\r\n\r\n" + answer()) as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


async def test_an_answer_in_pieces_is_one() -> None:
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (b'{"allow"', b": ", b"true}"))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with webhook(head + pieces + b"0\r\n\r\n") as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


def test_every_outcome_is_one_that_is_counted() -> None:
    counts = Counts()
    meter = WorkerMeter(counts)
    told = ["allowed", "overloaded", *(code.removeprefix("webhook_") for code in CODES if code.startswith("webhook_"))]
    for outcome in told:
        meter.delivered("pumps", outcome)
    assert {labels for _, labels in counts.all()} == {("pumps", outcome) for outcome in told}
    assert len(told) == 13
