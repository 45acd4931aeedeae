import pytest
import torch
from networks import classifier
from torch import nn

from edgecls.calibration.stem import depthwise_stem
from edgecls.export.trace import trace


def stem_of(*layers: nn.Module) -> tuple[str, ...]:
    torch.manual_seed(0)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    network(torch.zeros(2, 3, 32, 32))
    return depthwise_stem(trace(classifier(network.eval(), classes=5)).graph)


def conv(channels: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3, 2, bias=False), nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """Adds what a depthwise convolution and a pointwise one make of it."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.first(x).relu())


def depthwise(channels: int = 8) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Identity])
def test_the_stem_and_the_depthwise_convolution_behind_any_activation(activation) -> None:
    assert stem_of(conv(), activation(), depthwise(), nn.Conv2d(8, 8, 1)) == ("0.0", "2")


def test_a_sum_that_the_stem_is_added_to_is_another_reader() -> None:
    assert stem_of(conv(), nn.Hardswish(), Residual(depthwise())) == ("0.0", "2.first")


def test_a_depthwise_convolution_may_multiply_its_channels() -> None:
    assert stem_of(conv(), nn.Conv2d(8, 16, 3, groups=8)) == ("0.0", "1")


@pytest.mark.parametrize(
    "layers",
    [
        (conv(), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        (conv(), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)),
        (conv(), nn.MaxPool2d(2), depthwise()),
        (conv(),),
        (nn.Flatten(2), nn.Linear(32 * 32, 16), nn.Unflatten(1, (3, 1))),
    ],
    ids=["dense", "grouped", "pooled", "head", "product"],
)
def test_other_networks_have_none(layers) -> None:
    assert stem_of(*layers) == ()
