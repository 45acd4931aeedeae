import numpy as np
import onnx_ir as ir
import pytest

from edgecls.calibration.collect import calibration_set, collect_histograms, crops
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import make_plan
from edgecls.export.trace import probe_pictures, run_onnx
from edgecls.runtime import ImageSet, InputError, Preprocess
from edgecls.runtime.bundle import CalibrationRecord

GREY = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_batches_make_no_difference_to_the_plan(small):
    _, graph, _ = small
    pictures = probe_pictures(32, 12)
    record = CalibrationRecord(sha256="", seed=0, images=())
    seen = []
    plans = [
        make_plan(graph, collect_histograms(graph, np.split(pictures, parts), seen.append, threads=1), record)
        for parts in (1, 3, 12)
    ]
    assert sum(seen) == 36
    # One batch and twelve run other matrix products, whose float32 sums may differ in the last bit.
    for plan in plans[1:]:
        assert plan.weights == plans[0].weights
        for name, tensor in plan.tensors.items():
            np.testing.assert_allclose(tensor.asymmetric, plans[0].tensors[name].asymmetric, rtol=0.02, atol=1e-3)


def test_histograms_hold_what_the_graph_computes(small):
    _, graph, _ = small
    pictures = probe_pictures(32, 4)
    histograms = collect_histograms(graph, [pictures], lambda steps: None, threads=1)
    model = graph.ir_model()
    pooled = next(node.outputs[0] for node in model.graph if node.op_type == "MaxPool")
    model.graph.outputs[:] = [pooled]
    values = run_onnx(ir.to_proto(model).SerializeToString(), pictures)
    histogram = histograms[pooled.name]
    assert histogram.count == values.size
    assert (histogram.minimum, histogram.maximum) == pytest.approx((values.min(), values.max()))


def test_a_network_that_overflows_is_named(small):
    _, graph, _ = small
    model = graph.ir_model()
    stem = next(node for node in model.graph if node.op_type == "Conv")
    stem.inputs[1].const_value = ir.tensor(np.full(stem.inputs[1].shape.numpy(), np.inf, np.float32))
    broken = Graph(ir.to_proto(model).SerializeToString())
    with pytest.raises(InputError, match="not finite"):
        collect_histograms(broken, [probe_pictures(32, 2)], lambda steps: None, threads=1)


def test_the_set_is_drawn_and_checked(pictures):
    drawn = calibration_set(ImageSet.from_folder(pictures), 18, seed=1)
    assert len(drawn.images) == 18
    assert {image.folder for image in drawn.images} == {"class 0", "class 1", "class 2"}
    batches = list(crops(drawn, Preprocess(resize_px=34, crop_px=32, **GREY)))
    assert sum(len(batch) for batch in batches) == 18
    assert {batch.shape[1:] for batch in batches} == {(32, 32, 3)}


def test_too_few_pictures_are_refused(pictures):
    everything = ImageSet.from_folder(pictures)
    with pytest.raises(InputError, match="must be ≥ 16"):
        calibration_set(everything, 15, seed=0)
    with pytest.raises(InputError, match="holds 8 pictures"):
        calibration_set(ImageSet.from_folder(pictures / "class 0"), 256, seed=0)


def test_unreadable_pictures_are_all_listed(pictures, tmp_path):
    import shutil

    shutil.copytree(pictures, tmp_path / "set")
    for name in ("a.png", "b.jpg"):
        (tmp_path / "set" / "class 1" / name).write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"2 of 26 .*\n.*a\.png.*\n.*b\.jpg"):
        calibration_set(ImageSet.from_folder(tmp_path / "set"), 256, seed=0)
