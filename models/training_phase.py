"""The two phases of a training: what learns in each, and whether each will go."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecls.models.normalize import normalized_on_device
from edgecls.models.small_maps import SmallMaps
from edgecls.models.training_memory import is_of_memory
from edgecls.runtime.errors import InputError
from edgecls.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from accelerate import Accelerator


def begin_phase(network: nn.Module, head: Sequence[nn.Module], phase: str) -> None:
    """What learns in the phase has gradients."""
    network.requires_grad_(phase == "all")
    for layer in head:
        layer.requires_grad_(True)


def set_mode(network: nn.Module, head: Sequence[nn.Module], phase: str) -> None:
    """A frozen backbone keeps its batch statistics."""
    network.train(phase == "all")
    for layer in head:
        layer.train()


def rehearse(
    network: nn.Module,
    head: Sequence[nn.Module],
    sides_px: Mapping[str, Sequence[int]],
    preprocess: Preprocess,
    *,
    pictures: int,
    classes: int,
    accelerator: Accelerator,
) -> None:
    """One step of each phase on a copy, at its largest side and with the optimizer's moments.

    Memory that would run out in the second phase, hours later, runs out now. The copy takes the room of the averaged
    weights. A side that the network cannot take is found too; two pictures show that.

    Args:
        network: Left as it is.
        head: Its last layers.
        sides_px: By phase, the sides of its crops.
        preprocess: Of the pictures.
        pictures: In a step of this process.
        classes: How many there are.
        accelerator: Knows the device and the arithmetic.

    Raises:
        InputError: The network learns from no such pictures; the message says why.
    """
    crop_px = preprocess.crop_px
    network, head = copy.deepcopy((network, head))
    for phase, sides in sides_px.items():
        begin_phase(network, head, phase)
        set_mode(network, head, phase)
        optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=0.0, fused=True)
        for side_px in sorted(set(sides), key=lambda side_px: (side_px != crop_px, side_px)):
            count = pictures if side_px == max(sides) else 2
            pixels = torch.zeros(count, 3, side_px, side_px, dtype=torch.uint8, device=accelerator.device)
            try:
                with torch.random.fork_rng(devices=[]), accelerator.autocast(), SmallMaps():
                    logits = network(normalized_on_device(pixels, preprocess))
                _refuse_other_answers(logits, count, classes)
                torch.autograd.backward(logits.float().sum())
                if side_px == max(sides):
                    optimizer.step()
            except Exception as error:  # the network's own code
                if isinstance(error, InputError) or is_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise InputError(
                    f"the network does not learn from pictures of {crop_px} px, which it classifies ({reason}): "
                    "its forward must return logits that have gradients in training mode too."
                    if side_px == crop_px
                    else f"the network takes pictures of {crop_px} px and none of {side_px} px ({reason}): leave "
                    "out --train-px and --start-px, or give sides that it can take."
                ) from error
            optimizer.zero_grad()


def _refuse_other_answers(logits: object, count: int, classes: int) -> None:
    if not isinstance(logits, torch.Tensor) or logits.shape != (count, classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"in training mode the network returns {found}, not logits [{count}, {classes}]: "
            "let it return the logits alone then too, without auxiliary heads (aux_logits=False)."
        )
