"""The kinds of keys that a realm's CA is made of: which there are, which may be chosen, and who can't use them.

A realm has a root and two issuing CAs. `ec` signs for EST (its name is that of its usual key), `rsa` for SCEP.
"""

from collections.abc import Mapping

from ca_core.errors import OperatorError

ROOT = "root"
RSA_KINDS = ("rsa-2048", "rsa-3072", "rsa-4096")
ML_DSA_KINDS = ("ml-dsa-44", "ml-dsa-65", "ml-dsa-87")
KINDS = (*RSA_KINDS, "p-256", "p-384", "p-521", "ed25519", *ML_DSA_KINDS)
"""The kinds of keys that a CA may have."""

USUAL = {ROOT: "rsa-3072", "ec": "p-256", "rsa": "rsa-2048"}
"""Stock SCEP clients fail on anything but RSA, so the root above both families is RSA."""


def chosen_kinds(given: Mapping[str, str], root: str | None = None) -> dict[str, str]:
    """The kind of each of a realm's CA keys, root first, when some were given by family.

    `root` is the kind of a root's key that is there already, above a realm under a shared root. Raises `OperatorError`.
    """
    if root is not None and ROOT in given:
        raise OperatorError(
            "key_kind_invalid", "the root is another realm's, and has its key", "give the kinds of ec and rsa alone"
        )
    for family, kind in given.items():
        if family not in USUAL:
            raise OperatorError(
                "key_kind_invalid", f"a realm has no CA '{ascii(family[:40])[1:-1]}'", f"there are: {', '.join(USUAL)}"
            )
        allowed = RSA_KINDS if family == "rsa" else KINDS
        if kind not in allowed:
            raise OperatorError(
                "key_kind_invalid",
                f"the CA {family} can't have a key of the kind '{ascii(kind[:40])[1:-1]}'",
                f"use one of: {', '.join(allowed)}",
            )
    return USUAL | dict(given) | ({ROOT: root} if root is not None else {})


def carries_scep(kinds: Mapping[str, str]) -> bool:
    """Whether stock SCEP clients can verify what such a CA issues."""
    return kinds[ROOT] in RSA_KINDS


def warnings_of(kinds: Mapping[str, str]) -> list[str]:
    """Who can't use what such a CA issues, in sentences for the operator."""
    found: list[str] = []
    if not carries_scep(kinds):
        found.append(
            f"The root's key is {kinds[ROOT]}, and stock SCEP clients know RSA alone: SCEP is off in this realm."
        )
    for_est = {kinds[ROOT], kinds["ec"]}
    if for_est & set(ML_DSA_KINDS):
        found.append(
            "Clients verify ML-DSA (also in the server certificate of this realm's hosts) with OpenSSL 3.5 or later, "
            "or another library that knows FIPS 204; older ones can't connect to those hosts."
        )
    if "ed25519" in for_est:
        found.append(
            "Browsers, and whatever else allows no Ed25519 in certificates, can't verify the server certificate of "
            "this realm's hosts."
        )
    return found
