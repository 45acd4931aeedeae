"""Which layer adds the noise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgecls.export.emulation import Emulation
from edgecls.export.layer_noise import noise_to_signal, rank_layers
from edgecls.runtime.errors import EngineError

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
net (uint8[batch, side, side, 3] image) => (float[batch, 3] logits) <float factor = {{{factor}}}>
{{
    exact = Cast <to = 1> (image)
    scaled = Mul (exact, factor)
    pooled = ReduceMean <keepdims = 0> (scaled, axes)
    logits = Identity (pooled)
}}
""".replace("<float factor", "<int64[2] axes = {{1, 2}}, float factor")


def emulation(factor, tensors=()):
    model = onnx.parser.parse_model(GRAPH.format(factor=factor))
    return Emulation(model.SerializeToString(), None, 1, tensors)


PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_the_emulation_gives_logits_and_tensors():
    found = emulation(2.0, ["scaled", "exact"])
    assert found.logits(PIXELS) == pytest.approx(2 * PIXELS.mean((0, 1)))
    scaled, exact = found.tensors(PIXELS)
    assert scaled.shape == (1, 4, 4, 3)
    assert np.array_equal(exact[0], PIXELS)


def test_a_graph_that_cannot_run_is_an_engine_error():
    with pytest.raises(EngineError, match="does not run the bundle's graph"):
        Emulation(b"", None, 1)


def test_noise_is_a_part_of_the_power():
    names = ["exact", "scaled"]
    ratios = noise_to_signal(emulation(2.0, names), emulation(2.2, names), names, [(PIXELS, PIXELS)] * 2)
    assert ratios == {"exact": 0.0, "scaled": pytest.approx(0.01, rel=1e-4)}


def test_the_layer_that_loses_most_comes_first():
    ratios = {"stem": 1e-6, "middle": 1e-4, "late": 0.11, "head": 0.1}
    inputs = {"stem": frozenset(), "middle": {"stem"}, "late": {"middle", "stem"}, "head": {"late"}}
    ends = dict.fromkeys(ratios, (0.0, 1.0))
    layers = rank_layers(ratios, inputs, ends, ends)
    assert [layer.name for layer in layers] == ["late", "stem", "middle", "head"]
    assert layers[0].sqnr_in_db == pytest.approx(40)
    assert layers[0].lost_db == pytest.approx(30 - 9.586, abs=1e-3)
    assert layers[1].sqnr_in_db is None
    assert layers[1].sqnr_out_db == pytest.approx(60)
