"""`enrolld explain` of a CSR: the decision field by field."""

import hashlib
from typing import TYPE_CHECKING

from ca_core.names import DEFAULT_REALM
from enrolld.cli import output
from enrolld.cli.frame import Session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.registration.explanation import CsrExplanation

__all__ = ["explain_csr"]

_MARKS = {"given": "ok", "read": "ok", "refused": "FAIL", "dropped": "drop", "left_out": "-"}


def explain_csr(
    session: Session,
    path: str,
    der: bytes,
    *,
    realm: str | None,
    profile: str | None,
    device: str | None,
    renews: str | bytes | None,
) -> None:
    """Show what would be made of a PKCS#10 request in DER; `path` is where it was read from.

    `renews` is the serial number, or the DER, of the certificate that it renews.
    """

    async def body(core: "Core") -> "CsrExplanation":
        from ca_core.registration import explanation

        fingerprint: bytes | None = None
        if isinstance(renews, bytes):
            fingerprint = hashlib.sha256(renews).digest()
        elif renews is not None:
            row = await core.certificates.find(renews, realm=realm or DEFAULT_REALM)
            fingerprint = bytes.fromhex(row.fingerprint_sha256)
        return await explanation.explain_csr(
            core.store,
            core.realms,
            der,
            realm=realm or DEFAULT_REALM,
            profile=profile,
            name=device,
            clock=core.config.clock,
            demo=core.config.demo,
            renews=fingerprint,
        )

    found = session.run(body)
    if session.json:
        verdict = {"outcome": "refused" if found.code else "issued", "code": found.code, "sentence": found.sentence}
        output.emit_json({"file": path, "form": "pkcs10", **output.plain(found), "verdict": verdict})
        return
    width = max(len(each.field) for each in found.fields)
    for each in found.fields:
        told = each.value or ("not there" if each.outcome == "left_out" else "")
        if each.source:
            told = f"{told} (from {each.source})" if told else f"(from {each.source})"
        if each.message:
            told = f"{told}: {each.message}" if told else each.message
        output.raw(f"{_MARKS[each.outcome]:<4}  {each.field:<{width}}  {output.printable(told)}")
        if each.remedy:
            output.raw(f"{'':<{width + 8}}{output.printable(each.remedy)}")
    output.raw("")
    output.raw(found.sentence)
