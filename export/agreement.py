"""Whether an INT8 artifact still answers as its float graph does: a first look, before anybody measures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecls.calibration.graph import Graph
from edgecls.export.pack import answering_engine
from edgecls.export.targets import Artifact
from edgecls.export.trace import run_onnx
from edgecls.runtime.bundle import Manifest
from edgecls.runtime.session import Session

PICTURES = 32
"""Calibration pictures that are looked at: enough to see a broken graph, too few to judge a good one."""

_SUSPICIOUS = 0.75
"""Share below which a note warns; a graph that agrees on 95 % falls below it once in 50,000 draws of 32."""


@dataclass(frozen=True)
class Agreement:
    """How many pictures got the same best class from both graphs."""

    n: int
    same_top1: int

    @property
    def note(self) -> str:
        """What the user should read."""
        said = f"INT8 and float agree on the best class of {self.same_top1} of {self.n} calibration pictures"
        if self.same_top1 >= _SUSPICIOUS * self.n:
            return said
        return (
            f"{said}: quantization has damaged this network. Measure it with `edgecls bench` before anybody relies on "
            "it; ship fp32 if that confirms it."
        )


def compare_with_float(
    graph: Graph, manifest: Manifest, artifact: Artifact, batches: Iterable[NDArray[np.uint8]]
) -> Agreement:
    """Runs calibration pictures through the artifact and the float graph.

    Args:
        batches: Crops, `uint8 [batch, crop, crop, 3]`, RGB.
    """
    n = same = 0
    engine = answering_engine(manifest, artifact)
    try:
        for crops in batches:
            expected = run_onnx(graph.proto, crops).argmax(axis=1)
            # One at a time: that is how a board runs it, and what every engine has compiled already.
            got = [engine.infer(Session.pad(crop[None], manifest.padding))[0].argmax() for crop in crops]
            n += len(crops)
            same += int(np.count_nonzero(expected == got))
    finally:
        engine.close()
    return Agreement(n, same)
