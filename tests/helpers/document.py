"""Documents of realms as somebody writes them, and what is told of those that are refused."""

import pytest

from ca_core.errors import OperatorError
from ca_core.registration.document import parse_toml

__all__ = ["MINIMAL", "message_of"]

MINIMAL = 'name = "line"\n[profiles.device]\n'


def message_of(text: str) -> str:
    """What is told of a document that is refused."""
    with pytest.raises(OperatorError) as caught:
        parse_toml(text)
    assert caught.value.code == "document_invalid"
    assert caught.value.remedy
    return caught.value.message
