"""The one table from what went wrong to the wire."""

import pytest

from ca_core.codes import CODES
from ca_core.errors import (
    BadKey,
    ConditionFailed,
    ConstraintFailed,
    InternalError,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    PopFailed,
    Refusal,
    SealingFailed,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from est_server.errors import HTTP_STATUS, failure, refusal_answer


def leaves(kind: type[Refusal]) -> set[type[Refusal]]:
    below = [k for k in kind.__subclasses__() if k.__module__ == "ca_core.errors"]
    return set().union(*(leaves(k) for k in below)) if below else {kind}


def test_every_refusal_has_a_status() -> None:
    assert leaves(Refusal) == {kind for kind in HTTP_STATUS if isinstance(kind, type)}


def test_every_code_in_the_table_is_a_code() -> None:
    assert {code for code in HTTP_STATUS if isinstance(code, str)} <= set(CODES)


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        pytest.param(MalformedRequest("not_base64", "Told."), 400, id="malformed"),
        pytest.param(BadKey("key_type", "Told."), 400, id="key"),
        pytest.param(PopFailed("csr_signature_bad", "Told."), 400, id="pop"),
        pytest.param(NotAuthenticated("secret_wrong", "Told."), 401, id="not-authenticated"),
        pytest.param(NotAuthorized("device_suspended", "Told."), 403, id="not-authorized"),
        pytest.param(NotFound("realm_unknown", "Told."), 404, id="not-found"),
        pytest.param(NotFound("operation_not_served", "Told."), 404, id="not-served"),
        pytest.param(NotFound("method_not_allowed", "Told."), 405, id="method"),
        pytest.param(TooLarge("body_too_large", "Told."), 413, id="too-large"),
        pytest.param(UnsupportedMedia("content_type_wrong", "Told."), 415, id="media"),
    ],
)
def test_refusal_is_told_in_one_sentence_with_its_request_id(refusal: Refusal, status: int) -> None:
    answer = refusal_answer(refusal, "k7f3-9xq2", realm="pumps", allow="GET, HEAD")
    assert answer.status == status
    assert answer.body == b"Told. (request k7f3-9xq2)\n"
    assert answer.content_type == "text/plain"
    assert answer.headers == {401: {"WWW-Authenticate": 'Basic realm="pumps"'}, 405: {"Allow": "GET, HEAD"}}.get(
        status, {}
    )


def test_detail_is_for_the_operator_alone() -> None:
    answer = refusal_answer(NotAuthenticated("secret_wrong", "Told.", detail="selector abc"), "id")
    assert b"selector" not in answer.body
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="enrolld"'


def test_a_realm_that_takes_no_passwords_asks_for_none() -> None:
    refusal = NotAuthenticated("certificate_unknown", "Told.")
    answer = refusal_answer(refusal, "id", realm="pumps", takes_passwords=False)
    assert (answer.status, answer.headers, answer.code) == (403, {}, "certificate_unknown")
    assert refusal_answer(refusal, "id", realm="pumps").status == 401, "the twin"


def test_sentence_is_ascii_whatever_it_quotes() -> None:
    assert (
        refusal_answer(NotAuthorized("subject_mismatch", "No 'gerät'."), "id").body == b"No 'ger\\xe4t'. (request id)\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        InternalError("secret text"),
        Unavailable("secret text"),
        SealingFailed("secret text"),
        ConditionFailed(["secret text"]),
        ConstraintFailed("secret text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_fault_is_503_and_says_when_to_come_back(error: InternalError) -> None:
    answer = failure(error, "id")
    assert (answer.status, answer.headers) == (503, {"Retry-After": "60"})
    assert answer.body == b"Nothing can be issued at the moment; ask again later. (request id)\n"


def test_surprise_is_500_and_tells_nothing() -> None:
    answer = failure(KeyError("secret text"), "id")
    assert (answer.status, answer.headers) == (500, {})
    assert answer.body == b"The server failed; its operator can find out why. (request id)\n"
