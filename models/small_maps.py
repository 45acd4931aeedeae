"""Convolutions whose output is a few pixels wide, as matrix products: on CPUs they learn faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from edgecls.runtime.cpu import cpu_flags

# Of one tap; and, because there is a product for each of them, pixels of the input.
_MIN_CHANNEL_PAIRS, _MAX_INPUTS = 2**13, 49


class SmallMaps(TorchFunctionMode):
    """Entered around a network's forward pass: convolutions of small maps are matrix products where these are faster.

    The last stages of a ResNet see pictures of 64 px as maps of 2 x 2. oneDNN's convolutions, made for larger maps,
    take several times as long as products of what a pixel sees and the weights through which it sees it. What lies in
    the padding takes no part in them: it is more than half of what a 3 x 3 kernel sees on 2 x 2 pixels.
    `tests/perf/small_maps.py` measures it. Everything else, and whatever is not on a CPU, is computed as always.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Calls the function, or what stands in for it."""
        del types
        options: Mapping[str, Any] = kwargs or {}
        return (_conv2d if func is torch.conv2d else func)(*args, **options)


class _Axis(NamedTuple):
    """A convolution along the height or the width of its maps."""

    size: int
    taps: int
    stride: int
    padding: int

    @property
    def outputs(self) -> int:
        """Pixels of the output."""
        return (self.size + 2 * self.padding - self.taps) // self.stride + 1

    def seen_by(self, output: int) -> tuple[slice, slice]:
        """The pixels that an output sees, and the taps through which it does."""
        first = output * self.stride - self.padding
        begin = max(0, first)
        end = max(begin, min(self.size, first + self.taps))
        return slice(begin, end), slice(begin - first, end - first)

    def seeing(self, pixel: int) -> tuple[slice, slice]:
        """The outputs that see a pixel, and the taps, counted from the last one, through which they do."""
        place = pixel + self.padding
        begin = max(0, -((self.taps - 1 - place) // self.stride))
        end = max(begin, min(self.outputs, place // self.stride + 1))
        tap = self.taps - 1 - place + begin * self.stride
        return slice(begin, end), slice(tap, tap + (end - begin) * self.stride, self.stride)

    def through(self, tap: int) -> tuple[slice, slice]:
        """The outputs that see a pixel through a tap, and those pixels."""
        begin = max(0, -((tap - self.padding) // self.stride))
        end = max(begin, min(self.outputs, (self.size - 1 + self.padding - tap) // self.stride + 1))
        pixel = begin * self.stride - self.padding + tap
        return slice(begin, end), slice(pixel, pixel + (end - begin) * self.stride, self.stride)


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
    plain = (groups, _pair(dilation)) == (1, (1, 1)) and not isinstance(padding, str)
    fitting = input.ndim == 4 and input.shape[1] == weight.shape[1] and (autocast or input.dtype == weight.dtype)
    if input.device.type == "cpu" and plain and fitting:
        passes = _faster(weight, _axes(input, weight, _pair(stride), _pair(padding)), dtype)
        if passes is not None:
            product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                input.to(dtype), weight.to(dtype), _pair(stride), _pair(padding), passes
            )
            return product if bias is None else product + bias.to(dtype)[:, None, None]
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _axes(
    pictures: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[_Axis, _Axis]:
    """Height and width."""
    down, right = (
        _Axis(pictures.shape[2 + axis], weight.shape[2 + axis], stride[axis], padding[axis]) for axis in (0, 1)
    )
    return down, right


def _faster(weight: torch.Tensor, axes: tuple[_Axis, _Axis], dtype: torch.dtype) -> Literal["all", "weights"] | None:
    """The passes that are faster as products, measured on a Xeon with AMX and with its AVX512 alone."""
    if weight.shape[:2].numel() < _MIN_CHANNEL_PAIRS or min(axis.outputs for axis in axes) < 1:
        return None
    pixels = axes[0].outputs * axes[1].outputs
    if pixels <= 4 and axes[0].size * axes[1].size <= _MAX_INPUTS:
        return "all"
    # oneDNN uses AMX well but for the gradient of the weights, which sums over pictures and pixels.
    strided = axes[0].stride * axes[1].stride > 1
    amx = dtype == torch.bfloat16 and "amx_bf16" in cpu_flags()
    return "weights" if amx and pixels <= (49 if strided else 16) else None


class _Product(torch.autograd.Function):
    """`[N, C, H, W]` and `[O, C, h, w]` to `[N, O, H', W']`, all of one dtype, channels last in memory.

    It keeps what a convolution keeps: where a network recomputes its activations (`torch.utils.checkpoint`) the
    backward pass meets torch's own convolution and compares what was kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pictures: torch.Tensor,
        weight: torch.Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        passes: Literal["all", "weights"],
    ) -> torch.Tensor:
        ctx.save_for_backward(pictures, weight)
        ctx.stride, ctx.padding, ctx.passes = stride, padding, passes
        if passes == "weights":
            return torch.conv2d(pictures, weight, None, stride, padding)
        down, right = _axes(pictures, weight, stride, padding)
        pictures, weight = pictures.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
        out = pictures.new_empty(len(pictures), down.outputs, right.outputs, len(weight))
        for y in range(down.outputs):
            rows, taps_y = down.seen_by(y)
            for x in range(right.outputs):
                columns, taps_x = right.seen_by(x)
                out[:, y, x] = pictures[:, rows, columns].flatten(1) @ weight[:, taps_y, taps_x].flatten(1).T
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        pictures, weight = ctx.saved_tensors
        axes = _axes(pictures, weight, ctx.stride, ctx.padding)
        of_pictures = of_weight = None
        if ctx.needs_input_grad[0]:
            if ctx.passes == "weights":
                of_pictures = conv2d_input(  # type: ignore[no-untyped-call]
                    pictures.shape, weight, gradient, ctx.stride, ctx.padding
                )
            else:
                of_pictures = _of_pictures(gradient, weight, axes)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(gradient, pictures, axes)
        return of_pictures, of_weight, None, None, None


def _of_pictures(gradient: torch.Tensor, weight: torch.Tensor, axes: tuple[_Axis, _Axis]) -> torch.Tensor:
    """The gradient of the pictures: one product a pixel, over the outputs that see it."""
    down, right = axes
    gradient, turned = gradient.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1).flip(0, 1)
    total = gradient.new_empty(len(gradient), down.size, right.size, weight.shape[1])
    for y in range(down.size):
        rows, taps_y = down.seeing(y)
        for x in range(right.size):
            columns, taps_x = right.seeing(x)
            total[:, y, x] = gradient[:, rows, columns].flatten(1) @ turned[taps_y, taps_x].flatten(0, 2)
    return total.permute(0, 3, 1, 2)


def _of_weight(gradient: torch.Tensor, pictures: torch.Tensor, axes: tuple[_Axis, _Axis]) -> torch.Tensor:
    """The gradient of the weights: one product a tap, over the pictures and the outputs for which it is no padding."""
    down, right = axes
    gradient, pictures = gradient.permute(0, 2, 3, 1), pictures.permute(0, 2, 3, 1)
    total = gradient.new_empty(gradient.shape[3], down.taps, right.taps, pictures.shape[3])
    for y in range(down.taps):
        outputs_y, rows = down.through(y)
        for x in range(right.taps):
            outputs_x, columns = right.through(x)
            seen = pictures[:, rows, columns].flatten(0, 2)
            total[:, y, x] = gradient[:, outputs_y, outputs_x].flatten(0, 2).T @ seen
    return total.permute(0, 3, 1, 2)
