"""Rules that an engine's graphs must keep: what breaks one is named, with the remedy. A file here is an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecls.runtime.errors import EngineError


@dataclass(frozen=True)
class Finding:
    """One node that breaks one rule."""

    node: str
    """Name of the node, or of the graph's input where there is no node."""
    rule: str
    """`zero-point`, `uint8-inside`, …"""
    problem: str
    """What the engine would say, with the value."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.problem} [{self.rule}]; {self.remedy}"


def raise_findings(findings: Sequence[Finding], engine: str) -> None:
    """Refuses a graph of our own that breaks rules.

    Raises:
        EngineError: There are findings; the first five are listed.
    """
    if findings:
        listing = "\n".join(f"  {finding}" for finding in findings[:5])
        raise EngineError(
            f"the graph that we made breaks {len(findings)} rules of {engine}; nothing was written. Please report:\n"
            f"{listing}"
        )
