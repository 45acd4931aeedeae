"""Commands that need more than the base installation say which extra brings it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgecls.runtime.errors import MissingExtraError


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Surrounds imports that only work where an extra is installed.

    Args:
        extra: Name of the pip extra.
        purpose: What it is needed for, as the beginning of a sentence.

    Raises:
        MissingExtraError: A package is not installed; install the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edgecls":
            raise
        raise MissingExtraError(extra, purpose, f"{error.name} is not installed") from error
