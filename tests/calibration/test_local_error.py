import numpy as np
import pytest

from edgecls.calibration.local_error import local_errors
from edgecls.export.trace import probe_pictures


@pytest.fixture(scope="module")
def pictures():
    return [probe_pictures(32, 4)]


def test_the_range_that_cuts_more_has_the_larger_error(small, pictures):
    _, graph, plan = small
    name = next(node.inputs[0].name for node in graph.ir_model().graph if node.op_type == "Gemm")
    low, high = plan.tensors[name].asymmetric
    ranges = [(low, high), (low / 2, high / 2), (low / 8, high / 8)]
    told = []
    errors = local_errors(graph, {name: ranges}, pictures, told.append)[name]
    assert list(errors) == ranges
    assert 0 < errors[ranges[0]] < errors[ranges[1]] < errors[ranges[2]]
    assert told == [1]


def test_a_tensor_with_two_readers_is_told_once(small, pictures):
    graph = small[1]
    value = next(node.inputs[0] for node in graph.ir_model().graph if node.op_type == "Add")
    assert len(value.uses()) == 2
    told = []
    local_errors(graph, {value.name: [(0.0, 1.0), (0.0, 2.0)]}, pictures, told.append)
    assert told == [1]


def test_a_hard_swish_does_not_see_what_lies_below_minus_three(small, pictures):
    _, graph, plan = small
    node = next(node for node in graph.ir_model().graph if node.op_type == "HardSwish")
    tensor = plan.tensors[node.inputs[0].name]
    whole, cut = (tensor.minimum, tensor.maximum), (-3.0, tensor.maximum)
    errors = local_errors(graph, {node.inputs[0].name: [whole, cut]}, pictures, lambda n: None)[node.inputs[0].name]
    assert errors[cut] < errors[whole]


def test_one_range_needs_no_trial(small, pictures):
    _, graph, plan = small
    name = next(iter(plan.tensors))
    assert local_errors(graph, {name: [(0.0, 1.0), (0.0, 1.0)]}, pictures, lambda n: None) == {}
    assert np.isfinite(plan.tensors[name].symmetric)
