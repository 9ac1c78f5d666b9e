"""Whether a certificate has a name: the database looks for its key in the text of the certificate's row.

Nearly all keys stand there as they are, but for their case. Those of names that are written otherwise are kept beside,
in `certificate.name_keys`.
"""

import json
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from sqlalchemy import ColumnElement, and_, func, or_

from ca_core.registration.name_keys import key_of, keys_of_subject, recorded_key

__all__ = ["carries", "keys_beside"]


def carries(of: Any, key: Any, quoted: Any = None) -> ColumnElement[bool]:
    """Whether the certificate `of` (columns) has the name of a key; `quoted` is the name as JSON, where it is known.

    Names are told apart by the quotes of their JSON, a common name by commas.
    """
    names, subject = func.lower(of.names), func.lower("," + of.subject + ",")
    common_name = ",cn=" + func.substr(key, len("DNS:") + 1) + ","
    as_json = '"' + func.replace(func.replace(key, "\\", "\\\\"), '"', '\\"') + '"'
    return or_(
        func.replace(names, func.lower('"' + key + '"' if quoted is None else quoted), "") != names,
        and_(func.substr(key, 1, 4) == "DNS:", func.replace(subject, func.lower(common_name), "") != subject),
        func.replace(of.name_keys, as_json, "") != of.name_keys,
    )


def keys_beside(subject: x509.Name, names: Sequence[str]) -> str | None:
    """The keys that the texts of a certificate's row lack, as `certificate.name_keys` has them: None when none does."""
    keys = {key for _, found in keys_of_subject(subject) for key in found}
    keys.update(map(key_of, names))
    keys.update(recorded_key(name) for name in names if name.startswith("URI:"))
    # As databases lower it: of other letters than ASCII's, each in its own way.
    in_names, in_subject = json.dumps(names).encode().lower(), f",{subject.rfc4514_string()},".encode().lower()
    lacking = [key for key in sorted(keys) if not _stands(key, in_names, in_subject)]
    return json.dumps(lacking, ensure_ascii=False) if lacking else None


def _stands(key: str, in_names: bytes, in_subject: bytes) -> bool:
    sought = key.encode().lower()
    if not key.isascii():
        return False
    return b'"%b"' % sought in in_names or (
        key.startswith("DNS:") and b",cn=%b," % sought.removeprefix(b"dns:") in in_subject
    )
