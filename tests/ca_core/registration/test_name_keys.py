"""Two spellings of which a reader may take one for the other have one key, and are looked up together."""

import pytest

from ca_core.errors import OperatorError
from ca_core.names import parse_device_name
from ca_core.registration.device_facts import parse_sans
from ca_core.registration.name_keys import (
    check_new_device,
    key_of,
    keys_of_common_name,
    looked_up,
    own_name,
    recorded_key,
)


def _refusal(name: str) -> OperatorError | None:
    try:
        parse_sans([name])
    except OperatorError as exc:
        return exc
    return None


URIS = {
    "v6-zeros": ("https://[2001:db8:0:0::1]/x", "https://[2001:db8::1]/x"),
    "v6-case": ("https://[2001:DB8::A]/x", "https://[2001:db8::a]/x"),
    "v6-dotted": ("https://[2001:db8::1.2.3.4]/", "https://[2001:db8::102:304]/"),
    "v6-mapped": ("https://[::ffff:10.1.2.3]/", "https://10.1.2.3/"),
    "v6-mapped-hex": ("https://[::ffff:a01:203]/", "https://10.1.2.3/"),
    "port-https": ("https://h.example.com:443/a", "https://h.example.com/a"),
    "port-http": ("http://h.example.com:80/a", "http://h.example.com/a"),
    "port-coaps": ("coaps://h.example.com:5684/a", "coaps://h.example.com/a"),
    "port-zeros": ("https://h.example.com:00443/a", "https://h.example.com/a"),
    "port-empty": ("https://h.example.com:/a", "https://h.example.com/a"),
    "path-empty": ("https://h.example.com", "https://h.example.com/"),
    "path-empty-query": ("https://h.example.com?a=b", "https://h.example.com/?a=b"),
    "path-and-port": ("https://h.example.com:443", "https://h.example.com/"),
    "host-dot": ("https://h.example.com./a", "https://h.example.com/a"),
    "segments": ("https://h.example.com/b/.././a", "https://h.example.com/a"),
    "escaped-segments": ("https://h.example.com/b/%2E%2e/a", "https://h.example.com/a"),
    "escapes": ("https://h.example.com/%61%2Db", "https://h.example.com/a-b"),
    "user": ("https://u@h.example.com:443", "https://u@h.example.com/"),
}


@pytest.mark.parametrize(("one", "other"), URIS.values(), ids=URIS)
def test_spellings_that_rfc_3986_calls_equivalent_have_one_key(one: str, other: str) -> None:
    assert key_of(f"URI:{one}") == key_of(f"URI:{other}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h.example.com:80/", "https://h.example.com/"),
        ("http://h.example.com:443/", "http://h.example.com/"),
        ("https://h.example.com/a/", "https://h.example.com/a"),
        ("https://[2001:db8::1]/", "https://[2001:db8::2]/"),
        ("https://[2001:db8:::1]/", "https://[2001:db8::1]/"),
        ("https://[v1.a:b]/", "https://[v1.a:c]/"),
        ("https://h.example.com/?a", "https://h.example.com/#a"),
        ("https://u@h.example.com/", "https://h.example.com/"),
        ("https://h.example.com/%2F", "https://h.example.com//"),
        ("urn:dev:a", "urn:dev:a/"),
        ("foo://h:80/", "foo://h/"),
        ("https://h:" + "9" * 5000 + "/", "https://h/"),
    ],
)
def test_other_uris_have_other_keys(one: str, other: str) -> None:
    assert key_of(f"URI:{one}") != key_of(f"URI:{other}")


@pytest.mark.parametrize(("one", "other"), URIS.values(), ids=URIS)
def test_a_record_s_uri_is_looked_up_by_every_spelling_of_it_or_can_not_be_recorded(one: str, other: str) -> None:
    refused = _refusal(f"URI:{one}")
    assert refused is None or (refused.code, refused.remedy) == ("san_invalid", f"write URI:{other}")
    for name in [f"URI:{other}"] if refused else [f"URI:{one}", f"URI:{other}"]:
        for asked in (one, other):
            assert recorded_key(name) in looked_up([key_of(f"URI:{asked}")])


@pytest.mark.parametrize(
    ("uri", "is_taken"),
    [
        ("https://[2001:db8:0:0::1]/x", False),
        ("https://[2001:db8::1]/x", True),
        ("https://[2001:DB8::1]/x", True),
        ("https://[::ffff:10.1.2.3]/", False),
        ("https://h.example.com:443", True),
        ("https://h.example.com:", True),
        ("https://h.example.com:0443", False),
        ("https://h.example.com./", False),
        ("https://h.example.com/../a", False),
        ("https://h.example.com/a%2Db", True),
        ("urn:dev:..", True),
        ("tag:example.com,2024:[::0:1]", True),
    ],
)
def test_a_record_has_uris_in_spellings_that_are_looked_up(uri: str, is_taken: bool) -> None:
    refused = _refusal(f"URI:{uri}")
    assert (refused and refused.code) == (None if is_taken else "san_invalid")


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [
        ("2001:db8::9", True),
        ("2001:DB8::9", True),
        ("2001:db8:0:0:0:0:0:9", True),
        ("2001:0db8:0000:0000:0000:0000:0000:0009", True),
        ("00:24:BE:ff:fe:80:4f:f1", True),
        ("0:24:be:ff:fe:80:4f:f1", True),
        ("00:11:22:33:44:55:66:77", True),
        ("::ffff:10.1.2.3", True),
        ("10.1.2.3", True),
        ("00:11:22:33:44:55", True),
        ("2001:db8:0::9", False),
        ("2001:db8::0.0.0.9", False),
        ("2001:0db8::9", False),
        ("::ffff:0a01:0203", False),
        ("0:0:0:0:0:ffff:10.1.2.3", False),
        (".", False),
        ("..", False),
        ("..a", True),
        ("-", True),
        ("_", True),
    ],
)
def test_a_new_device_is_called_by_an_address_only_as_that_is_looked_up_and_never_by_dots(
    name: str, is_taken: bool
) -> None:
    parse_device_name(name)
    if not is_taken:
        with pytest.raises(OperatorError) as caught:
            check_new_device(name)
        assert caught.value.code == "name_invalid"
        return
    check_new_device(name)
    key = own_name(name)
    assert all(key in looked_up([each]) for each in keys_of_common_name(name)), "found by what it may be taken for"


@pytest.mark.parametrize(
    ("common_name", "host"),
    [
        ("m\u00fcnchen.example.com", "xn--mnchen-3ya.example.com"),
        ("MU\u0308NCHEN.example.com.", "xn--mnchen-3ya.example.com"),
        ("m\u00fcnchen\u3002example\uff0ecom", "xn--mnchen-3ya.example.com"),
        ("b.\u65e5\u672c.example", "b.xn--wgv71a.example"),
        ("stra\u00dfe.example.com", "xn--strae-oqa.example.com"),
        ("stra\u00dfe.example.com", "strasse.example.com"),
    ],
)
def test_u_labels_are_the_same_name_as_their_a_labels(common_name: str, host: str) -> None:
    assert key_of(f"DNS:{host}") in tuple(keys_of_common_name(common_name))
    assert set(keys_of_common_name(common_name)) & set(looked_up([key_of(f"DNS:{host}")]))


@pytest.mark.parametrize(
    "common_name",
    [
        "xn--\u00fc.example.com",
        "xn--a-\uffff.example.com",
        "xn---.example.com",
        "xn--" + "9" * 250,
        "xn--99999999999999.example",
        "\U0010fffe.example",
        "\u00fc" * 250,
        "\u00fc." * 120,
        "B\u00fcro Kamera",
        "...",
    ],
)
def test_what_is_no_label_has_its_own_key_and_does_no_harm(common_name: str) -> None:
    keys = tuple(keys_of_common_name(common_name))
    assert keys[0] == own_name(common_name)
    assert set(keys) <= set(looked_up(keys))
