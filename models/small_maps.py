"""Convolutions whose output is a few pixels wide, as matrix products: on CPUs they learn faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from edgecls.runtime.cpu import cpu_flags

_MIN_WEIGHTS = 2**17


class SmallMaps(TorchFunctionMode):
    """Entered around a network's forward pass: its convolutions of small maps are matrix products, both ways.

    The last stages of a ResNet see pictures of 64 px as maps of 2 x 2, for which oneDNN's convolutions, made for larger
    ones, take several times as long as the product of the windows with the weights (im2col: Chellapilla et al. 2006,
    "High Performance Convolutional Neural Networks for Document Processing"). `tests/perf/small_maps.py` measures it.
    Everything else, and whatever is not on a CPU, is computed as always.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Calls the function, or what stands in for it."""
        del types
        options: Mapping[str, Any] = kwargs or {}
        return (_conv2d if func is torch.conv2d else func)(*args, **options)


def _conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    autocast = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    if (
        input.device.type != "cpu"
        or input.ndim != 4
        or weight.numel() < _MIN_WEIGHTS
        or weight.shape[2:].numel() == 1
        or (groups, _pair(dilation)) != (1, (1, 1))
        or isinstance(padding, str)
        or _map_of(input, weight, _pair(stride), _pair(padding)).numel() > _max_pixels(dtype)
    ):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        input.to(dtype), weight.to(dtype), _pair(stride), _pair(padding)
    )
    return product if bias is None else product + bias.to(dtype)[:, None, None]


def _max_pixels(dtype: torch.dtype) -> int:
    """Of the largest output for which the product was faster, on a Xeon with AMX and with its AVX512 alone."""
    return 16 if dtype == torch.bfloat16 and "amx_bf16" in cpu_flags() else 4


def _map_of(
    pictures: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Size:
    """Height and width of the output."""
    return torch.Size(
        (pictures.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis]) // stride[axis] + 1 for axis in (0, 1)
    )


class _Product(torch.autograd.Function):
    """`[N, C, H, W]` and `[O, C, h, w]` to `[N, O, H', W']`, all of one dtype, channels last in memory.

    It keeps what a convolution keeps, not the windows: they are larger, and where a network recomputes its activations
    (`torch.utils.checkpoint`) the backward pass meets torch's own convolution and compares what was kept.
    """

    @staticmethod
    def forward(
        ctx: Any, pictures: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(pictures, weight)
        ctx.stride, ctx.padding = stride, padding
        windows = _padded(pictures, padding).unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])
        product: torch.Tensor = _rows(windows) @ _columns(weight).T
        return product.view(*windows.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        pictures, weight = ctx.saved_tensors
        (step_y, step_x), (down, right) = ctx.stride, ctx.padding
        tall, wide = gradient.shape[2:]
        height, width = weight.shape[2:]
        gradient = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        padded = _padded(pictures, ctx.padding)
        of_pictures = of_weight = None
        if ctx.needs_input_grad[0]:
            of_windows = (gradient @ _columns(weight)).view(len(pictures), tall, wide, height, width, -1)
            # Windows overlap, and bfloat16 would round after each of them.
            total = torch.zeros_like(padded, dtype=torch.promote_types(gradient.dtype, torch.float32))
            for y in range(height):
                for x in range(width):
                    ends = y + step_y * tall, x + step_x * wide
                    total[:, y : ends[0] : step_y, x : ends[1] : step_x] += of_windows[:, :, :, y, x]
            inner = total[:, down : total.shape[1] - down, right : total.shape[2] - right]
            of_pictures = inner.to(gradient.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            rows = _rows(padded.unfold(1, height, step_y).unfold(2, width, step_x))
            of_weight = (gradient.T @ rows).view(len(weight), height, width, -1).permute(0, 3, 1, 2)
        return of_pictures, of_weight, None, None


def _padded(pictures: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """`[N, H, W, C]`, with zeros around."""
    down, right = padding
    return functional.pad(pictures.permute(0, 2, 3, 1), (0, 0, right, right, down, down))


def _rows(windows: torch.Tensor) -> torch.Tensor:
    """`[N, H', W', C, h, w]` as a matrix of a row a window."""
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _columns(weight: torch.Tensor) -> torch.Tensor:
    """`[O, h * w * C]`, in the order of the rows; no copy where the weights are channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)
