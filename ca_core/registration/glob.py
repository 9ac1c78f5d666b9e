"""Globs: `*` is one or more characters, and never one that separates parts of a name; all else stands for itself.

There are no regular expressions and no escapes. Matching takes time in proportion to the text.
"""

import re
import unicodedata
from dataclasses import dataclass

__all__ = ["Glob"]


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern that a whole text must match. `separators` are characters that `*` never stands for."""

    pattern: str
    separators: str = ""

    def matches(self, text: str) -> bool:
        """Whether it does."""
        if not self.separators:
            return _matches_part(self.pattern, text)
        cut = f"([{re.escape(self.separators)}])"
        wanted, given = re.split(cut, self.pattern), re.split(cut, text)
        return len(wanted) == len(given) and all(
            a == b if index % 2 else _matches_part(a, b) for index, (a, b) in enumerate(zip(wanted, given, strict=True))
        )

    def matches_common_name(self, text: str) -> bool:
        """Whether it does as a common name, which many take for a host name: then it is no wildcard, and a pattern with
        a dot takes its labels one by one. Characters that mean dots and stars count as these.
        """
        plain = unicodedata.normalize("NFKC", text).replace("\u3002", ".")
        if "*" in plain or not self.matches(text):  # enforces case 29
            return False
        return "." not in self.pattern or Glob(self.pattern, ".").matches(plain)  # enforces case 29


def _matches_part(pattern: str, text: str) -> bool:
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    if not text.startswith(first):
        return False
    # The leftmost place of each piece is as good as any other, so nothing is ever tried twice.
    end = len(first)
    for piece in rest[:-1]:
        found = text.find(piece, end + 1)
        if found < 0:
            return False
        end = found + len(piece)
    return text.endswith(rest[-1]) and len(text) - len(rest[-1]) > end
