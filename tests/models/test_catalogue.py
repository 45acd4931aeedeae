"""What is told of an architecture before anybody has built it."""

import pytest
import torch

from edgecls.models import torchvision_operators  # noqa: F401 (before torchvision)
from edgecls.models.architecture import find_architecture
from edgecls.models.catalogue import BOARDS, CURATED, catalogue, describe
from edgecls.models.torchvision_zoo import TorchvisionModel
from edgecls.runtime import InputError
from edgecls.runtime.engines import engine_names


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet", "vit_b_16"])
def test_the_counts_are_those_that_torchvision_publishes(name):
    import torchvision

    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    entry = describe(name)
    assert entry.parameters == meta["num_params"]
    assert entry.macs / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)
    assert (entry.input_px, entry.note) == (224, None)
    assert entry.licence == "bsd-3-clause, ImageNet terms"


def test_a_network_of_timm_is_counted_as_when_it_runs():
    entry = describe("mobilenetv4_conv_small")
    module = find_architecture("mobilenetv4_conv_small").build(224)
    assert entry.parameters == sum(parameter.numel() for parameter in module.parameters())
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.inference_mode():
        module.eval()(torch.zeros(1, 3, 224, 224))
    assert 2 * entry.macs == counter.get_total_flops()
    assert entry.licence == "apache-2.0"


def test_a_heavy_network_is_for_strong_boards():
    light, heavy = describe("mobilenet_v3_small"), describe("vit_b_16")
    assert light.targets == {board: target for board, (target, _) in BOARDS.items()}
    assert heavy.targets == {"Orin Nano": "tensorrt"}
    assert {target for target, _ in BOARDS.values()} <= set(engine_names())


def test_every_curated_name_is_a_model():
    assert [find_architecture(name).name for name in CURATED] == list(CURATED)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet1[58]", ["resnet18"]),
        ("timm:resnet1[58]", ["timm:resnet18"]),
        ("torchvision:mobilenet_v3_*", ["mobilenet_v3_large", "mobilenet_v3_small"]),
        ("timm:mobilenetv4_conv_smal?", ["mobilenetv4_conv_small"]),
    ],
)
def test_a_pattern_picks_names_as_model_takes_them(pattern, names, monkeypatch):
    monkeypatch.setattr("edgecls.models.catalogue.describe", lambda name: name)
    assert catalogue(pattern) == names


def test_no_match_says_what_to_try():
    with pytest.raises(InputError, match=r"'efficientnet_lite'\. Try '\*efficientnet_lite\*'"):
        catalogue("efficientnet_lite")


def test_the_generators_of_the_caller_are_as_before():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    catalogue("mobilenet_v3_small")
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_counted_says_why(monkeypatch):
    def build(self, crop_px):
        raise RuntimeError("needs real numbers")

    monkeypatch.setattr(TorchvisionModel, "build", build)
    entry = describe("resnet18")
    assert (entry.parameters, entry.macs, entry.targets) == (None, None, {})
    assert entry.note == "cannot be counted: needs real numbers"
