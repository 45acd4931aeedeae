"""Close matches for what was mistyped: suggested, never taken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of an error message: ` Did you mean 'openvino'?`, or nothing where nothing is close."""
    matches = difflib.get_close_matches(word, list(words), n=3)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
