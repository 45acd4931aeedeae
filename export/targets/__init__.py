"""What a workstation does for each engine.

A file here is a target, of the same name as its engine in `runtime/engines/`; the folder lists itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.runtime.bundle import Padding, Passport, Precision
from edgecls.runtime.cpu import Isa
from edgecls.runtime.errors import InputError


@dataclass(frozen=True)
class Artifact:
    """What a target made of a graph."""

    files: dict[str, bytes]
    """The engine's own files by member name, in the order in which the engine takes them."""
    padding: Padding | None
    """The border that the session puts around the crop."""
    passport: Passport
    """What the artifact is valid on."""
    notes: tuple[str, ...]
    """What the user should know: nodes that stayed in float and why."""


class Target(Protocol):
    """What a module in this folder offers."""

    PRECISIONS: tuple[Precision, ...]
    """Those that make sense on this engine."""

    REFUSED: Mapping[Precision, str]
    """Why each of the others does not, and what to ask for instead."""

    def compile_artifact(self, graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa) -> Artifact:
        """Makes the engine's files from a graph.

        Args:
            plan: For `int8`; None otherwise.
            isa: Instruction set that an INT8 graph is made for.

        Raises:
            MissingExtraError: The engine's own compiler is not installed.
        """
        ...


def target_names() -> tuple[str, ...]:
    """Names of the targets, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def target_module(name: str) -> Target:
    """The module of a target.

    Raises:
        InputError: There is no target of that name.
    """
    if name not in target_names():
        raise InputError(f"no target is called {name!r}; there are {', '.join(target_names())}")
    return cast(Target, importlib.import_module(f"{__name__}.{name}"))
