"""BER to DER: what becomes of each form, and the bounds, each beside what is just inside it."""

import pytest

from scep_server.ber import MAX_DEPTH, MAX_ELEMENTS, to_der


@pytest.mark.parametrize(
    ("ber", "der"),
    [
        pytest.param("3080 020105 0000", "3003 020105", id="indefinite"),
        pytest.param("3080 3080 0000 0000", "3002 3000", id="nested-and-empty"),
        pytest.param("30820003 020105", "3003 020105", id="length-too-long"),
        pytest.param("2480 040161 04026263 0000", "0403 616263", id="octets-in-pieces"),
        pytest.param("2407 2403 040161 0400", "0401 61", id="pieces-of-pieces"),
        pytest.param("2400", "0400", id="no-pieces"),
        pytest.param("3306 040161 130162", "1302 6162", id="text-in-pieces"),
        pytest.param("a080 040161 040162 0000", "a006 040161 040162", id="pieces-under-a-tag-are-left"),
        pytest.param("0403 308000", "0403 308000", id="inside-a-string-nothing-is-touched"),
        pytest.param("3106 020105 020101", "3106 020105 020101", id="the-order-of-a-set-is-kept"),
    ],
)
def test_ber_becomes_der(ber: str, der: str) -> None:
    assert to_der(bytes.fromhex(ber)) == bytes.fromhex(der)


@pytest.mark.parametrize(
    ("ber", "reason"),
    [
        pytest.param("0480 0000", "not constructed", id="indefinite-primitive"),
        pytest.param("0000", "without a beginning", id="end-alone"),
        pytest.param("3002 0000", "without a beginning", id="end-in-a-definite-length"),
        pytest.param("3080 020105", "cut off", id="no-end"),
        pytest.param("3003 020205", "cut off", id="longer-than-what-is-around"),
        pytest.param("3089 000000000000000001 00", "nothing has", id="length-of-nine-octets"),
        pytest.param("3f8101 00", "several octets", id="long-tag"),
        pytest.param("2480 020105 0000", "not its pieces", id="pieces-of-another-type"),
        pytest.param("3000 00", "follow", id="bytes-after-the-end"),
    ],
)
def test_what_is_not_ber_is_refused(ber: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_der(bytes.fromhex(ber))


def test_depth_is_bounded() -> None:
    assert to_der(b"\x30\x80" * MAX_DEPTH + b"\0\0" * MAX_DEPTH)
    with pytest.raises(ValueError, match="too deep"):
        to_der(b"\x30\x80" * (MAX_DEPTH + 1) + b"\0\0" * (MAX_DEPTH + 1))


def test_the_number_of_elements_is_bounded() -> None:
    pieces = MAX_ELEMENTS - 2
    assert len(to_der(b"\x24\x80" + b"\x04\x01x" * pieces + b"\0\0")) == pieces + 4
    with pytest.raises(ValueError, match="too many"):
        to_der(b"\x24\x80" + b"\x04\x01x" * (pieces + 1) + b"\0\0")
