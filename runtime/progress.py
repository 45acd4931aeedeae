"""How long work tells where it is, without knowing who listens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""Called with the number of steps that were done since the last call."""


class Progress(Protocol):
    """Receives the stages of a long piece of work."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Announces a stage of `total` steps (None: not countable); it ends with the block."""
        ...

    def note(self, message: str) -> None:
        """Says something that the user should read, once."""
        ...


class SilentProgress:
    """Listens to nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Does nothing."""
        yield lambda steps: None

    def note(self, message: str) -> None:
        """Does nothing."""


class PlainProgress:
    """A line on standard error for everything that is said."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Prints that the stage begins."""
        self.note(title)
        yield lambda steps: None

    def note(self, message: str) -> None:
        """Prints the message."""
        print(f"edgecls: {message}", file=sys.stderr, flush=True)
