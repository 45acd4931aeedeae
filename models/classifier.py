"""The record that the export stage starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn


CLIP = "clip:"
"""What the name of a zero-shot model begins with."""
_SUFFIXES = {".py", ".onnx", ".safetensors"}


@dataclass(frozen=True)
class Classifier:
    """A trained image classifier and everything that is known about its input and output."""

    name: str
    """Short, fit for a file name: `tf_efficientnet_lite0`."""
    model: str
    """As it was asked for: `timm:tf_efficientnet_lite0`, `net.onnx`, `net.py:make`."""
    source: nn.Module | Path
    """A torch module in evaluation mode on the CPU (float32 `[batch, 3, height, width]`, normalised, to logits), or
    an ONNX file."""
    preprocess: Preprocess
    preprocess_source: Mapping[str, str]
    """For each field of `preprocess`, where it came from."""
    labels: Labels
    checkpoint_sha256: str | None
    """Of the checkpoint's (or ONNX file's) bytes; None for weights that no file holds."""
    notes: tuple[str, ...] = ()
    """What was assumed on the way and the user should read: which of two sets of weights was taken, how a head was
    rebuilt, …"""
    float32_only: str | None = None
    """Why INT8 and half-precision arithmetic are refused, and what to do instead; None where they are not."""

    @property
    def public_model(self) -> str:
        """`model` without the folders of a file, which are nobody's business where a bundle goes: `net.py:make`."""
        if model_file(self.model) is None:
            return self.model
        prefix = CLIP if self.model.startswith(CLIP) else ""
        return prefix + Path(self.model.removeprefix(CLIP)).name


def model_file(model: str, folder: Path = Path()) -> Path | None:
    """The file that MODEL names, alone or as `FILE.py:FACTORY` or `clip:FILE`; None where a library knows it.

    Args:
        model: See there.
        folder: That a relative path begins in.
    """
    place = model.rpartition(":")[0]
    file = folder / (place if place.endswith(".py") else model.removeprefix(CLIP))
    return file if file.suffix.lower() in _SUFFIXES or file.is_file() else None
