import msgspec
import numpy as np
import pytest
import torch
from networks import classifier
from torch import nn

from edgecls.calibration.plan import QuantPlan
from edgecls.calibration.quantization import Quantization
from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.runtime import Bundle, ImageSet


def uneven() -> nn.Module:
    """A stem whose channels differ a hundredfold in size, and a depthwise convolution that makes them equal again."""
    torch.manual_seed(1)
    sizes = torch.logspace(-2, 0, 16)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16, momentum=None), nn.Linear(16, 7),
    )  # fmt: skip
    coarse = (torch.rand(64, 3, 5, 5) - 0.45) / 0.225
    with torch.no_grad():
        network[0].weight *= sizes[:, None, None, None]
        network[0].bias *= sizes
        network[2].weight /= sizes[:, None, None, None]
        network[9].weight *= 5
        network(nn.functional.interpolate(coarse, 32, mode="bicubic"))  # logits of ordinary sizes
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_stem_that_integers_hurt_stays_in_float_on_every_target(target, pictures, tmp_path) -> None:
    opened = classifier(uneven())
    traced, plans, notes = trace(opened), {}, {}
    for without in (frozenset(), frozenset({"float-stem"})):
        result = export_bundle(
            opened, target=target, precision="int8", output=tmp_path / "x.edgecls", traced=traced, timed=False,
            calibration=ImageSet.from_folder(pictures), quantization=Quantization(ranges="mse", without=without),
        )  # fmt: skip
        plans[without] = msgspec.json.decode(Bundle(result.path).read("plan.json"), type=QuantPlan)
        notes[without] = result.notes
    (kept, gained), (plain, silent) = zip(plans.values(), notes.values(), strict=True)
    assert list(kept.float_nodes) == (["0", "2"] if target == "onnxruntime" else ["2"])
    assert not plain.float_nodes
    (said,) = [note for note in gained if note.startswith("float-stem: KL divergence")]
    before, after = (float(number) for number in np.array(said.split())[[5, 7]])
    assert after < 0.3 * before
    assert any("so early, integers cost" in note for note in gained)
    assert not any("float-stem" in note or "so early" in note for note in silent)
