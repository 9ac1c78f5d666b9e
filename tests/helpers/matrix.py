"""Documents for the realm matrix: two realms with given ways, and manufacturers that are hard to tell apart."""

import msgspec

from ca_core.matrix import Policy
from ca_core.registration.admission.challenge import hash_challenge
from ca_core.registration.admission.webhook import WebhookDocument
from ca_core.registration.document import RealmDocument, TrustDocument, default_document
from tests.helpers import factory

__all__ = ["EVERYTHING", "POLICIES", "document", "policy"]

POLICIES = (
    ("secret",),
    ("idevid",),
    ("challenge",),
    ("approval",),
    ("secret + webhook",),
    ("idevid + webhook",),
    ("secret + approval",),
    ("idevid + approval",),
    ("challenge + approval",),
    ("secret + webhook + approval",),
    ("secret + idevid",),
    ("challenge + idevid",),
    ("challenge + idevid + approval",),
)
EVERYTHING = ("secret", "idevid", "challenge", "secret + webhook", "approval")
"""A realm that admits in every way."""
_COMMON = factory.root("Common Root", organization="Common Makers")


def document(name: str, ways: tuple[str, ...], *, idevid: str = "registered", challenge: str = "") -> RealmDocument:
    """A realm with these ways. It trusts a manufacturer of its own, one that all trust, and one of a name that all
    trust, whose key is another one in each realm."""
    made = default_document(name, (), None)
    admission = msgspec.structs.replace(
        made.admission,
        ways=ways,
        idevid=idevid,
        challenge=hash_challenge(challenge or f"the challenge of realm {name}, of its own"),
        webhook=WebhookDocument(url="http://127.0.0.1:1/ask", key="hooks"),
    )
    roots = {
        "own": factory.root(f"{name} Root", organization=f"{name} Makers"),
        "alike": factory.root("Alike Root", organization="Alike Makers"),
        "common": _COMMON,
    }
    trust = tuple(TrustDocument(name=label, pem=root.pem.decode()) for label, root in roots.items())
    return msgspec.structs.replace(made, admission=admission, trust=trust)


def policy(home: tuple[str, ...], away: tuple[str, ...] | None = None) -> Policy:
    """The realms `default` with the ways `home`, and `other` with those of `away`, or with the same."""
    return Policy((document("default", home), document("other", away or home)))
