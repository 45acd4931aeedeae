"""What a workstation does for each engine.

A file here is a target, of the same name as its engine in `runtime/engines/`; the folder lists itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.runtime.bundle import Padding, Passport, Precision
from edgecls.runtime.cpu import Isa
from edgecls.runtime.errors import InputError

if TYPE_CHECKING:
    from edgecls.export.placement import Rules


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
    stand_in: bytes | None = None
    """An ONNX model that ONNX Runtime answers golden samples with, where the engine need not be on this machine."""
    golden_tolerance: float | None = None
    """Part of the largest logit by which the engine may differ from the golden samples; None: as CPU engines do."""


@dataclass(frozen=True)
class Gpu:
    """What a graph for a GPU is made for; targets that run on CPUs do not look at it."""

    tensorrt_version: str | None = None
    """Of the device: `8.6`, `10.3`; None for the usual one."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that an engine is built for ahead of time: `8.6`, `12.0`; empty for all that the builder knows."""


ANY_GPU = Gpu()


class Target(Protocol):
    """What a module in this folder offers."""

    PRECISIONS: tuple[Precision, ...]
    """Those that make sense on this engine."""

    REFUSED: Mapping[Precision, str]
    """Why each of the others does not, and what to ask for instead."""

    def compile_artifact(
        self, graph: Graph, precision: Precision, plan: QuantPlan | None, isa: Isa, gpu: Gpu = ANY_GPU
    ) -> Artifact:
        """Makes the engine's files from a graph.

        Args:
            plan: For `int8`; None otherwise.
            isa: Instruction set that an INT8 graph is made for.
            gpu: What a target that runs on a GPU makes the graph for.

        Raises:
            MissingExtraError: The engine's own compiler is not installed.
        """
        ...

    def rules(self, isa: Isa, gpu: Gpu = ANY_GPU) -> Rules:
        """What the engine wants of an INT8 graph.

        Args:
            isa: As in `compile_artifact`.
            gpu: As in `compile_artifact`.
        """
        ...


def target_names() -> tuple[str, ...]:
    """Names of the targets, sorted; `tensorrt_rtx.py` is `tensorrt-rtx`, as its engine is."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def target_module(name: str) -> Target:
    """The module of a target.

    Raises:
        InputError: There is no target of that name.
    """
    if name not in target_names():
        raise InputError(f"no target is called {name!r}; there are {', '.join(target_names())}")
    return cast(Target, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def is_narrow(target: str, precision: Precision) -> bool:
    """Whether activations have fewer bits than float32, so that calibration pictures must show their range."""
    in_half: bool = getattr(target_module(target), "COMPUTES_IN_HALF", False)
    return precision == "int8" or (precision == "fp16" and in_half)
