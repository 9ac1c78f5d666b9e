"""Ids that tie an answer, a log line and an audit event together, and that a technician can read out on the phone."""

import secrets

# Without 0/o, 1/l/i, u/v: nothing that is misread on a label or misheard.
_ALPHABET = "23456789abcdefghjkmnpqrstwxyz"
_GROUP = 4


def new_request_id() -> str:
    """A fresh id such as "k7f3-9xq2": two groups of four, 38 random bits. It is no secret and proves nothing."""
    letters = "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in secrets.token_bytes(2 * _GROUP))
    return f"{letters[:_GROUP]}-{letters[_GROUP:]}"
