import numpy as np
import onnx
import onnx_ir as ir
import torch
from networks import classifier, plan_of
from torch import nn

from edgecls.calibration.equalization import equalizing_scales
from edgecls.calibration.graph import constant
from edgecls.calibration.rescale_channels import is_source, readers, rescaled
from edgecls.calibration.smoothing import smoothing_scales
from edgecls.export.trace import probe_pictures, run_onnx, trace

PICTURES = probe_pictures(32, 4)


class Chain(nn.Module):
    """Convolution, depthwise, pointwise with Relu between them; a layer norm before two products."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 16, 1)
        )
        self.norm = nn.LayerNorm(16)
        self.left, self.right = nn.Linear(16, 5), nn.Linear(16, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.body(x).mean((2, 3)))
        return self.left(x) * self.right(x)


def chain():
    torch.manual_seed(3)
    network = Chain()
    with torch.no_grad():
        network.body[0].weight *= torch.logspace(-1, 1, 12)[:, None, None, None]
        network.norm.weight[3], network.norm.bias[3] = 40.0, 20.0
    return trace(classifier(network.eval(), classes=5)).graph


def test_nothing_changes_in_what_is_computed():
    graph = chain()
    model = graph.ir_model()
    rng = np.random.default_rng(0)
    scales = {
        value.name: tuple(rng.uniform(0.2, 5, value.shape[1]))
        for node in model.graph
        for value in node.outputs
        if is_source(node) and readers(value)
    }
    assert len(scales) == 3
    np.testing.assert_allclose(
        run_onnx(rescaled(graph, scales).proto, PICTURES), run_onnx(graph.proto, PICTURES), rtol=1e-4, atol=1e-4
    )
    assert rescaled(graph, {}) is graph


def test_equalised_weights_have_one_size_in_every_channel():
    graph = chain()
    scales = equalizing_scales(graph)
    assert len(scales) == 2

    def spread(graph):
        weight = constant(next(node for node in graph.ir_model().graph if node.op_type == "Conv").inputs[1])
        largest = np.abs(weight).max(axis=(1, 2, 3))
        return largest.max() / largest.min()

    assert spread(rescaled(graph, scales)) < 0.2 * spread(graph)


def test_a_clip_or_a_hard_swish_between_layers_is_left_alone(small):
    model = small[1].ir_model()
    scaled = [node.name for node in model.graph if node.outputs[0].name in equalizing_scales(small[1])]
    assert scaled
    assert all(name.endswith("reduce") for name in scaled)  # of squeeze-and-excitation: a Relu follows
    for node in model.graph:
        if any(use.node.op_type in {"Clip", "HardSwish", "Mul", "Add"} for use in node.outputs[0].uses()):
            assert not readers(node.outputs[0])


def test_a_huge_channel_of_a_layer_norm_becomes_smaller():
    graph = chain()
    scales = smoothing_scales(graph, [PICTURES], lambda n: None)
    ((name, scale),) = scales.items()
    assert np.argmax(scale) == 3
    plain, smooth = (plan_of(g, PICTURES).tensors[name] for g in (graph, rescaled(graph, scales)))
    assert smooth.maximum / np.exp(np.log(scale).mean()) < 0.7 * plain.maximum


class Turned(nn.Module):
    """A layer norm over the channels of a picture, and a convolution of single pixels: what ConvNeXt's blocks do."""

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Conv2d(16, 8, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).mean((2, 3))


def turned(kernel):
    torch.manual_seed(3)
    network = Turned(kernel)
    with torch.no_grad():
        network.norm.weight[3], network.norm.bias[3] = 40.0, 20.0
    return trace(classifier(network.eval(), classes=8)).graph


def test_a_layer_norm_is_smoothed_through_a_transpose():
    graph = turned(1)
    ((name, scale),) = smoothing_scales(graph, [PICTURES], lambda n: None).items()
    assert np.argmax(scale) == 3
    smooth = rescaled(graph, {name: scale})
    np.testing.assert_allclose(run_onnx(smooth.proto, PICTURES), run_onnx(graph.proto, PICTURES), rtol=1e-4, atol=1e-4)
    assert plan_of(smooth, PICTURES).tensors[name].maximum < 0.5 * plan_of(graph, PICTURES).tensors[name].maximum


def test_what_reads_neighbouring_pixels_is_rescaled_but_not_smoothed():
    graph = turned(2)
    (norm,) = (node for node in graph.ir_model().graph if node.op_type == "LayerNormalization")
    assert [reader.op_type for reader in readers(norm.outputs[0])] == ["Conv"]
    assert not smoothing_scales(graph, [PICTURES], lambda n: None)


def test_a_product_along_another_axis_reads_no_channels():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 4, 4, 4] x) => (float[n, 4, 4, 4] y) <float[4, 4, 1, 1] w, float[4, 4] m>
        { c = Conv(x, w) y = MatMul(c, m) }"""
    )
    arrays = [np.ones((4, 4, 1, 1), np.float32), np.ones((4, 4), np.float32)]
    model.graph.initializer.extend(map(onnx.numpy_helper.from_array, arrays, "wm"))
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model)).graph
    assert not readers(graph[0].outputs[0])
