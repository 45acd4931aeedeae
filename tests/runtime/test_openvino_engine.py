"""OpenVINO uses the CPUs that there are, by its own account."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines.openvino import OpenVinoEngine

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed here")
opset = pytest.importorskip("openvino.opset13")


def mean_colours() -> "openvino.Model":
    """`uint8 [1, 4, 4, 3]` to the mean of each channel."""
    images = opset.parameter([1, 4, 4, 3], dtype=np.uint8)
    means = opset.reduce_mean(opset.convert(images, "f32"), np.array([1, 2]), keep_dims=False)
    return openvino.Model([means], [images])


@pytest.mark.parametrize("threads", sorted({1, 2, cpu_count(), cpu_count() + 1}))
def test_as_many_calls_at_a_time_as_cpus_hold(threads):
    engine = OpenVinoEngine(openvino.Core(), mean_colours(), threads, "0")
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 4, 4, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.infer, images))
    np.testing.assert_allclose(answers, images.mean((2, 3)), rtol=1e-6)
    batch = engine.infer(images[:3, 0])
    np.testing.assert_allclose(batch, images[:3, 0].mean((1, 2)), rtol=1e-6)
    for compiled in engine._compiled.values():
        streams = max(1, cpu_count() // threads)
        assert compiled.get_property("NUM_STREAMS") == streams
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(threads * streams, cpu_count())
    engine.close()
