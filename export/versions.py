"""What takes part in an export: another version of it may give other bytes."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from edgecls import __version__

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt_rtx": "tensorrt-rtx-cu13-libs",
    "nncf": "nncf",
    "numpy": "numpy",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}
"""Modules, and the distributions that bring them."""

_FLOORS = ("runtime", "bench", "calibration", "models", "export")


def loaded_versions() -> dict[str, str]:
    """Versions of what this process has loaded: a bundle's provenance."""
    return {"edgecls": __version__, **_versions(module for module in _PACKAGES if module in sys.modules)}


@cache
def installed_versions() -> dict[str, str]:
    """Versions of what is installed, and a digest of edgecls' own code, which changes more often than its version."""
    digest = hashlib.sha256()
    for floor in _FLOORS:
        for file in sorted(Path(importlib.import_module(f"edgecls.{floor}").__path__[0]).rglob("*.py")):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"edgecls": f"{__version__}+{digest.hexdigest()[:12]}", **_versions(_PACKAGES)}


def _versions(modules: Iterable[str]) -> dict[str, str]:
    found = {}
    for module in modules:
        with suppress(metadata.PackageNotFoundError):
            found[_PACKAGES[module]] = metadata.version(_PACKAGES[module])
    return found
