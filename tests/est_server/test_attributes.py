"""What csrattrs tells of a profile."""

import pytest
from asn1crypto import core as asn1

from ca_core.registration.document import EstDocument, RealmDocument, validated
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm, Resolved
from est_server.attributes import wanted_attributes
from est_server.codec import encode_csrattrs


def _resolved(profile: ProfileDocument, *, bound: bool = False, label: str | None = None) -> Resolved:
    est = EstDocument(channel_binding="required" if bound else "optional")
    document = validated(RealmDocument(name="r", est=est, profiles={"device": profile, "other": ProfileDocument()}))
    return Resolved(Realm(1, "r", "active", 1, 0, document), label, "est", "device", None)


@pytest.mark.parametrize(
    ("keys", "hexed"),
    [
        # SEQUENCE { algorithm, SET { curve } }, as in the examples of RFC 9908 5
        pytest.param(("p-256",), "301506072a8648ce3d0201310a06082a8648ce3d030107", id="p-256"),
        pytest.param(("p-384",), "301206072a8648ce3d0201310706052b81040022", id="p-384"),
        pytest.param(("rsa-4096",), "301106092a864886f70d010101310402021000", id="rsa-4096"),
        pytest.param(("rsa",), "300d06092a864886f70d0101013100", id="rsa-of-any-size"),
        pytest.param(("ed25519",), "300706032b65703100", id="ed25519"),
        pytest.param(("p-256", "p-384"), "", id="a-choice-can-not-be-told"),
    ],
)
def test_the_one_kind_of_key_that_a_profile_allows_is_told(keys: tuple[str, ...], hexed: str) -> None:
    wanted = wanted_attributes(_resolved(ProfileDocument(keys=keys)))
    if not hexed:
        assert wanted == []
    else:
        assert encode_csrattrs(wanted).hex()[4:] == hexed


def test_an_attribute_that_the_profile_takes_from_the_request_is_told() -> None:
    profile = ProfileDocument(subject={"CN": "{device.name}", "serialNumber": "{csr:SN-*}", "O": "{csr:*?}"})
    body = encode_csrattrs(wanted_attributes(_resolved(profile, bound=True)))
    assert [item.dotted for item in asn1.SequenceOf.load(body, spec=asn1.ObjectIdentifier)] == [
        "1.2.840.113549.1.9.7",
        "2.5.4.5",
    ]


def test_the_profile_is_that_of_the_label() -> None:
    profile = ProfileDocument(keys=("p-256",))
    assert wanted_attributes(_resolved(profile)) != []
    assert wanted_attributes(_resolved(profile, label="other")) == []
