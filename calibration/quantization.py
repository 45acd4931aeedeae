"""What a user decides about an INT8 graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgecls.calibration.plan import Granularity, RangeChoice

Correction = Literal["equalization", "smoothquant", "float-stem", "bias-correction"]
"""What is done so that a graph quantizes better, and costs hardly anything at run time."""

CORRECTIONS: tuple[Correction, ...] = get_args(Correction)


@dataclass(frozen=True)
class Quantization:
    """How an INT8 graph is made."""

    quantizer: Literal["edgecls", "nncf"] = "edgecls"
    """`nncf` quantizes with NNCF instead of our plan; what follows then means nothing."""
    ranges: RangeChoice = "auto"
    weights: Granularity = "per-channel"
    without: frozenset[Correction] = frozenset()
    """Corrections that are not tried. Equalisation is for per-tensor weights only, SmoothQuant for layer norms, a stem
    in float for networks with a depthwise convolution right behind it."""
