"""Where the PINs of tokens come from, and in which order."""

from pathlib import Path

import pytest

from ca_core.errors import OperatorError
from enrolld import unlock
from enrolld.config import Flags, Node
from enrolld.config_file import FILE_NAME

GENERAL = 'pin_file = "general"\n'
OWN = '[hsm.pin_files]\nvault = "own"\n"a token" = "own-2"\n'


def node(directory: Path, settings: str) -> Node:
    for name in ("general", "own", "own-2"):
        path = directory / name
        path.write_text(f"of-{name}\n")
        path.chmod(0o600)
    (directory / FILE_NAME).write_text(f"[hsm]\n{settings}")
    return Node.load(Flags(dir=str(directory)), {})


def pins(found: Node, environ: dict[str, str], *tokens: str) -> list[str | None]:
    settings = unlock.find_hsm(found, environ)
    assert settings is not None
    return [pin.reveal() if (pin := settings.pin_of(token)) else None for token in tokens]


@pytest.mark.parametrize(
    ("settings", "handed", "told"),
    [
        pytest.param(GENERAL, (), ["of-general", "of-general", "of-general"], id="one-for-all"),
        pytest.param(GENERAL + OWN, (), ["of-own", "of-own-2", "of-general"], id="own-and-general"),
        pytest.param(OWN, (), ["of-own", "of-own-2", None], id="own-alone"),
        pytest.param(
            GENERAL + OWN,
            ("enrolld-hsm-pin.vault",),
            ["by enrolld-hsm-pin.vault", "of-own-2", "of-general"],
            id="a-credential-of-one",
        ),
        pytest.param(
            GENERAL + OWN,
            ("enrolld-hsm-pin",),
            ["of-own", "of-own-2", "by enrolld-hsm-pin"],
            id="the-credential-of-all",
        ),
        pytest.param("", ("enrolld-hsm-pin.other",), [None, None, "by enrolld-hsm-pin.other"], id="credentials-alone"),
    ],
)
def test_a_token_gets_its_own_pin_before_that_of_all(
    tmp_path: Path, settings: str, handed: tuple[str, ...], told: list[str | None]
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in handed:
        (credentials / name).write_text(f"by {name}\n")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert pins(node(tmp_path, settings), environ, "vault", "a token", "other") == told


def test_a_node_without_any_pin_reaches_no_hsm(tmp_path: Path) -> None:
    assert unlock.find_hsm(node(tmp_path, ""), {}) is None


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda path: path.chmod(0o640), "hsm_pin_permissions", id="others-may-read"),
        pytest.param(lambda path: path.unlink(), "hsm_pin_missing", id="gone"),
        pytest.param(lambda path: path.write_text("\n"), "hsm_pin_invalid", id="empty"),
    ],
)
def test_case_73_the_pin_of_one_token_is_as_well_guarded_as_that_of_all(
    tmp_path: Path, spoil: "object", code: str
) -> None:
    found = node(tmp_path, OWN)
    assert callable(spoil)
    spoil(tmp_path / "own")
    with pytest.raises(OperatorError) as caught:
        unlock.find_hsm(found, {})
    assert caught.value.code == code
    assert "of-own" not in str(caught.value) + caught.value.remedy


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param('"" = "x"', "hsm.pin_files: expected the label of a token", id="no-label"),
        pytest.param(f'"{"x" * 33}" = "x"', "hsm.pin_files: expected the label of a token", id="long-label"),
        pytest.param('"a\\u001b" = "x"', "hsm.pin_files: expected the label of a token, got 'a\\x1b'", id="escape"),
        pytest.param('vault = ""', "hsm.pin_files.vault: expected the path of a file", id="no-path"),
        pytest.param("vault = 7", "hsm.pin_files: expected a string", id="a-number"),
    ],
)
def test_what_names_no_token_or_file_is_told_with_its_key(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(OperatorError) as caught:
        node(tmp_path, f"[hsm.pin_files]\n{line}\n")
    assert told in caught.value.message
