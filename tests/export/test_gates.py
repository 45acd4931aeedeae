"""Which products belong to squeeze-and-excitation, as PyTorch's networks and timm's write it."""

import pytest
import torch
from networks import classifier
from torch import nn

from edgecls.calibration.graph import constant
from edgecls.calibration.plan import WEIGHTED
from edgecls.export.gates import ON_PIXELS, squeezes
from edgecls.export.targets import openvino, tensorrt
from edgecls.export.trace import trace


class LinearGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid())

    def forward(self, x):
        return x * self.squeeze(x.mean((2, 3))).view(-1, 16, 1, 1)


class SplitAttention(nn.Module):
    """Of ResNeSt, radix 2: a softmax over the branches is the gate."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(8, 16, 1), nn.SiLU(), nn.Conv2d(16, 16, 1))

    def forward(self, x):
        batch, _, height, width = x.shape
        branches = x.reshape(batch, 2, 8, height, width)
        gate = self.squeeze(branches.sum(1).mean((2, 3), keepdim=True))
        gate = gate.view(batch, 1, 2, -1).transpose(1, 2).softmax(1).reshape(batch, -1).view(batch, -1, 1, 1)
        return (branches * gate.reshape(batch, 2, 8, 1, 1)).sum(1)


class GatedHead(nn.Module):
    """Numbers that weigh numbers: no pixels are gated."""

    def __init__(self):
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 7)

    def forward(self, x):
        x = nn.functional.silu(x.mean((2, 3)))
        return self.out(self.value(x) * self.gate(x).sigmoid())


def products(body, head):
    """By name: every weighted operation between a first convolution and the answer, but that."""
    network = nn.Sequential()
    for name, part in (("stem", nn.Conv2d(3, 16, 4, 4)), ("body", body), ("head", head)):
        network.add_module(name, part)
    torch.manual_seed(0)
    graph = trace(classifier(network.eval(), crop_px=16)).graph.ir_model().graph
    return {node.name: node for node in graph if node.op_type in WEIGHTED and constant(node.inputs[1]) is not None}


@pytest.mark.parametrize(("gate", "channels"), [(LinearGate, 16), (SplitAttention, 8)])
def test_a_gate_is_seen_through_what_moves_it(gate, channels):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7))
    found = products(gate(), head)
    gates = {name for name, node in found.items() if squeezes(node)}
    assert gates == {"body.squeeze.0", "body.squeeze.2"}
    for rules in (openvino.rules("x86-vnni"), tensorrt.rules("x86-vnni")):
        assert {rules.stays_float(found[name]) for name in gates} == {ON_PIXELS}


def test_numbers_that_weigh_numbers_are_no_gate():
    found = products(nn.Conv2d(16, 16, 1), GatedHead())
    assert len(found) == 5
    assert not [name for name, node in found.items() if squeezes(node)]
