"""Convolutions as matrix products: the same numbers and gradients, for small maps alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgecls.models import small_maps
from edgecls.models.small_maps import SmallMaps


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The outputs that were computed as products."""
    found: list[torch.Size] = []
    apply = small_maps._Product.apply

    def counted(*arguments: object) -> torch.Tensor:
        product: torch.Tensor = apply(*arguments)
        found.append(product.shape)
        return product

    monkeypatch.setattr(small_maps._Product, "apply", counted)
    return found


def _both_ways(layer: torch.nn.Conv2d, pictures: torch.Tensor, bf16: bool) -> list[tuple[torch.Tensor, ...]]:
    """The answers and all gradients, of torch and of `SmallMaps`."""
    found = []
    for mode in (torch.overrides.BaseTorchFunctionMode(), SmallMaps()):
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = layer(pictures)
        assert out.dtype == (torch.bfloat16 if bf16 else torch.float32)
        loss = out.float().square().sum()
        found.append((out.float(), *torch.autograd.grad(loss, [pictures, *layer.parameters()])))
    return found


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    side=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    passes=st.sampled_from(["all", "weights"]),
)
def test_a_product_and_its_gradients_are_those_of_the_convolution(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], side: tuple[int, int], passes: str
) -> None:
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, *side, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    found = small_maps._Product.apply(pictures, weight, stride, padding, passes)
    wanted = functional.conv2d(pictures, weight, None, stride, padding)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, (pictures, weight), gradient),
        torch.autograd.grad(wanted, (pictures, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_learns_the_same_from_small_maps(bf16: bool, bias: bool, products: list[torch.Size]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=bias)
    pictures = torch.randn(4, 128, 2, 2, requires_grad=True)
    answers = _both_ways(layer, pictures, bf16)
    assert products == [(4, 128, 2, 2)]
    for one, other in zip(*answers, strict=True):
        scale = float(one.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=scale * (2e-2 if bf16 else 1e-5))


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (torch.nn.Conv2d(128, 128, 3, padding=1), 8),
        (torch.nn.Conv2d(128, 128, 1), 8),
        (torch.nn.Conv2d(8, 512, 3, padding=1), 2),
        (torch.nn.Conv2d(512, 512, 3, padding=1, groups=4), 2),
        (torch.nn.Conv2d(128, 128, 3, padding=2, dilation=2), 2),
        (torch.nn.Conv2d(128, 128, 3, padding="same"), 2),
    ],
    ids=["large map", "large map, 1 x 1", "few channels", "groups", "dilated", "padding by name"],
)
def test_other_convolutions_are_left_to_torch(layer: torch.nn.Conv2d, side: int, products: list[torch.Size]) -> None:
    pictures = torch.randn(2, layer.in_channels, side, side)
    wanted = layer(pictures)
    with SmallMaps():
        found = layer(pictures)
    assert not products
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("flags", "bf16", "wanted"), [({"amx_bf16"}, True, 1), ({"amx_bf16"}, False, 0), (set(), True, 0)]
)
def test_with_amx_the_gradient_of_the_weights_is_a_product_for_larger_maps_too(
    flags: set[str], bf16: bool, wanted: int, products: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(small_maps, "cpu_flags", lambda: frozenset(flags))
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False)
    pictures = torch.randn(4, 128, 4, 4, requires_grad=True)
    answers = _both_ways(layer, pictures, bf16)
    assert len(products) == wanted
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=float(one.detach().abs().max()) * 2e-2)


@pytest.mark.parametrize(
    ("layer", "pictures", "message"),
    [
        (torch.nn.Conv2d(128, 128, 3), torch.zeros(2, 128, 2, 2), "[Kk]ernel size can't be greater"),
        (torch.nn.Conv2d(128, 128, 3, padding=1), torch.zeros(2, 128, 2, 2, dtype=torch.float64), "dtype|type"),
        (torch.nn.Conv2d(128, 128, 3, padding=1), torch.zeros(2, 64, 2, 2), "channels"),
    ],
    ids=["nothing to see", "two dtypes", "channels"],
)
def test_what_torch_refuses_is_refused(layer: torch.nn.Conv2d, pictures: torch.Tensor, message: str) -> None:
    with SmallMaps(), pytest.raises(RuntimeError, match=message):
        layer(pictures)


def test_a_frozen_layer_has_no_gradient_and_passes_one_on(products: list[torch.Size]) -> None:
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
    pictures = torch.randn(2, 128, 2, 2, requires_grad=True)
    with SmallMaps():
        layer(pictures).sum().backward()
    assert products
    assert layer.weight.grad is None
    assert pictures.grad is not None


@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_that_recomputes_its_activations_learns(bf16: bool, products: list[torch.Size]) -> None:
    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    pictures = torch.randn(2, 128, 2, 2, requires_grad=True)
    with SmallMaps(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = checkpoint(layer, pictures, use_reentrant=False)
    out.float().sum().backward()
    assert products
    assert layer.weight.grad is not None
    assert pictures.grad is not None
