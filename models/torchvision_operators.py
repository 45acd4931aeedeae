"""Lets torchvision be imported where its compiled operators cannot load.

torchvision's wheel may be built for CUDA while torch is the CPU build: its library does not load, and it then refuses
to import because the operator `torchvision::nms` does not exist. Classification needs no such operator; declaring the
two that the import insists on is enough. Import this module before torchvision or timm. Where the operators do load
it declares nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _operators_load() -> bool:
    """Whether the operators exist, or the library that brings them loads (as torchvision's own import would do)."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    package = importlib.util.find_spec("torchvision")  # finds, does not import
    if package is None or package.origin is None:
        return False
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    library = importlib.machinery.FileFinder(str(Path(package.origin).parent), loader).find_spec("_C")
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)  # type: ignore[no-untyped-call]
    except (OSError, ImportError):
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _declare() -> torch.library.Library:
    declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            declared.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
    return declared


# The declaration lives as long as this object.
DECLARED: torch.library.Library | None = None if _operators_load() else _declare()
