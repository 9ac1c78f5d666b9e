"""Realms with ways of admission, for tests: one line of the document, and who asks with what."""

import dataclasses
import tomllib
from collections.abc import Awaitable
from typing import Any

import tomli_w

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import OperatorError, Refusal
from ca_core.model import Call, Evidence, Issued, Operation, Pending, Refused
from ca_core.rows import RequestRow
from tests.helpers.core import ME, PrivateKey, csr_of, new_key

__all__ = ["admit_by", "code_of_act", "only_request", "outcome_of", "poll_outcome", "transact", "verdict"]

CALL = Call("test-0001", "est", "simpleenroll", "192.0.2.1")


async def admit_by(core: Core, *ways: str, realm: str = "default", **settings: Any) -> None:
    """Give the realm these ways, and settings of `[admission]`, as an operator does."""
    document = tomllib.loads(await core.realms.export(realm))
    document["admission"] |= {"ways": list(ways), **settings}
    await core.realms.apply(tomli_w.dumps(document), actor=ME)


async def transact(
    core: Core,
    evidence: Evidence,
    csr: ParsedCsr,
    *,
    operation: Operation = Operation.ENROLL,
    label: str | None = None,
    **call: Any,
) -> Issued | Pending | Refused:
    """Ask as a protocol does, whatever comes of it. `call` changes what the operator sees of the request."""
    asked = dataclasses.replace(CALL, **call)
    resolved = await core.realms.resolve(asked.protocol, label, None)
    try:
        requester = await core.registration.authenticate(resolved, evidence, csr)
    except Refusal as refusal:
        return Refused(core.registration.refused(refusal, asked, resolved, csr=csr))
    return await core.registration.enroll(resolved, requester, csr, operation, asked)


async def outcome_of(core: Core, evidence: Evidence, csr: ParsedCsr, **options: Any) -> str:
    """The outcome in a word: `issued`, `pending`, or the code of the refusal."""
    return _in_a_word(await transact(core, evidence, csr, **options))


def _in_a_word(outcome: Issued | Pending | Refused) -> str:
    match outcome:
        case Refused(refusal):
            return refusal.code
        case Pending():
            return "pending"
        case Issued():
            return "issued"


async def verdict(core: Core, evidence: Evidence, csr: ParsedCsr | None = None, **options: Any) -> str:
    """`outcome_of`, by default for `sensor` with a new key. A crash is no refusal: it shows as what it is."""
    try:
        return await outcome_of(core, evidence, csr or csr_of(new_key()), **options)
    except Exception as exc:
        return repr(exc)


async def code_of_act(act: Awaitable[object]) -> str:
    """How an operator's act ends, in a word: `done`, or the code of its error."""
    try:
        await act
    except OperatorError as exc:
        return exc.code
    except Exception as exc:
        return repr(exc)
    return "done"


async def only_request(core: Core, state: str | None = None) -> RequestRow:
    """The one request that there is, or the one in that state."""
    [row] = await core.requests.list(state=state, limit=10)
    return row


async def poll_outcome(core: Core, key: PrivateKey, transaction: str = "T-1") -> str:
    """What a poll by that key is told: `issued`, `pending` or the refusal's code."""
    resolved = await core.realms.resolve("scep", None, None)
    call = Call("poll-0001", "scep", "CertPoll", "192.0.2.1", transaction_id=transaction)
    return _in_a_word(await core.registration.poll(resolved, transaction, csr_of(key).spki_sha256, call))
