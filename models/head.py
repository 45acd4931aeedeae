"""The classifier head of a library model takes the shape that a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgecls.models.checkpoint import StateDict

_MAX_LEADING = 1
"""Layers without weights accepted before the only layer of a `Sequential` head. One is dropout as everybody writes it;
of more, one may be an activation, and no checkpoint says which."""


def last_layer(module: nn.Module) -> str | None:
    """Name of the last linear or convolutional layer, which is the classifier in every torchvision model."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else None


def layers_of_logits(module: nn.Module, crop_px: int) -> tuple[str, ...]:
    """Names of the linear and convolutional layers from which the logits come with no other such layer between.

    A distilled network has two of them. There is none where one of them has not as many outputs as there are classes:
    something else makes the logits then.

    Args:
        module: In evaluation mode; it runs once on black pictures.
        crop_px: Their side.
    """
    made: dict[Any, tuple[str, int]] = {}
    names: dict[nn.Module, str] = {
        layer: name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    }

    def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if output.grad_fn is not None:
            made[output.grad_fn] = (names[layer], output.shape[-1 if isinstance(layer, nn.Linear) else 1])

    hooks = [layer.register_forward_hook(note) for layer in names]
    try:
        with torch.enable_grad():
            # Gradients reach the pictures too: what a factory has frozen is found as well.
            logits = module(torch.zeros(2, 3, crop_px, crop_px, requires_grad=True).clone())
    finally:
        for hook in hooks:
            hook.remove()
    last: set[Any] = set()
    seen: set[Any] = set()
    ahead: list[Any] = [logits.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in made:
            last.add(node)
        elif node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    if any(made[node][1] != logits.shape[1] for node in last):
        return ()
    return tuple(dict.fromkeys(name for node, (name, _) in made.items() if node in last))


def fit_head(module: nn.Module, layer: str, tensors: StateDict) -> str | None:
    """Rebuilds the head around `layer` in place so that its names and shapes are those of `tensors`.

    The containers that hold the layer are tried, outermost first, then the layer itself. Known forms: the same layers
    with other sizes; one linear layer instead of the container; a `Sequential` of one dropout and one linear layer.

    Returns:
        What was assumed beyond the number of classes, for the user to read; None where nothing was.
    """
    parts = layer.split(".")
    for depth in range(1, len(parts) + 1):
        root = ".".join(parts[:depth])
        names = {name[len(root) + 1 :]: name for name in tensors if name.startswith(root + ".")}
        own = set(module.get_submodule(root).state_dict())
        if set(names) == own:
            return _resize_layers(module, root, tensors)
        if set(names) <= {"weight", "bias"} and "weight" in names:
            return _replace(module, root, tensors, leading=0, sequential=False)
        indices = {name.partition(".")[0] for name in names}
        if len(indices) == 1 and set(names) <= {f"{min(indices)}.weight", f"{min(indices)}.bias"}:
            index = min(indices)
            if index.isdecimal() and int(index) <= _MAX_LEADING and f"{index}.weight" in names:
                return _replace(module, root, tensors, leading=int(index), sequential=True)
    return None


def resize_classes(module: nn.Module, layer: str, classes: int) -> None:
    """Gives the last layer another number of outputs, in place."""
    old = module.get_submodule(layer)
    if isinstance(old, (nn.Linear, nn.Conv2d)) and old.weight.shape[0] != classes:
        module.set_submodule(layer, _resized(old, (classes, *old.weight.shape[1:]), old.bias is not None))


def _resize_layers(module: nn.Module, root: str, tensors: StateDict) -> str | None:
    """Gives the layers below `root` the sizes of the checkpoint; names are equal already."""
    hidden: list[str] = []
    layers = [
        (f"{root}.{name}".rstrip("."), layer)
        for name, layer in module.get_submodule(root).named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    for name, layer in layers:
        shape = tuple(tensors[f"{name}.weight"].shape)
        if shape == tuple(layer.weight.shape) or len(shape) != layer.weight.ndim:
            continue
        if name != layers[-1][0]:
            hidden.append(f"{name} {shape[1]} to {shape[0]}")
        module.set_submodule(name, _resized(layer, shape, layer.bias is not None))
    if not hidden:
        return None
    return f"the head has other hidden layers ({', '.join(hidden)}): kept the library's activation between them"


def _replace(module: nn.Module, root: str, tensors: StateDict, *, leading: int, sequential: bool) -> str | None:
    """Puts one linear layer, or a `Sequential` that ends with it, in the place of `root`."""
    prefix = f"{root}.{leading}" if sequential else root
    weight = tensors[f"{prefix}.weight"]
    old = module.get_submodule(root)
    if weight.ndim != 2:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{prefix}.bias" in tensors)
    layers: Sequence[nn.Module] = [*(nn.Dropout() for _ in range(leading)), linear]
    module.set_submodule(root, nn.Sequential(*layers) if sequential else linear)
    if isinstance(old, nn.Linear) and not sequential:
        return None
    what = "Sequential(Dropout, Linear)" if leading else "Sequential(Linear)" if sequential else "one Linear"
    return f"rebuilt the head '{root}' as {what} with {weight.shape[1]} inputs, as the checkpoint's names say"


def _resized(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...], bias: bool) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0], bias=bias)
    return nn.Conv2d(
        shape[1] * layer.groups,
        shape[0],
        (shape[2], shape[3]),
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=bias,
    )
