"""A state dict goes into a model entirely, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgecls.models.checkpoint import Checkpoint, StateDict
from edgecls.runtime.errors import InputError

_SHOWN = 5
_ROLES = frozenset({"weight", "bias", "running_mean", "running_var"})
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Differences:
    """How a state dict's names and shapes differ from a model's."""

    missing: tuple[str, ...]
    """In the model only."""
    unexpected: tuple[str, ...]
    """In the checkpoint only."""
    shapes: tuple[str, ...]
    """In both with different shapes, in words."""

    @classmethod
    def between(cls, tensors: StateDict, module: nn.Module) -> Differences:
        """Compares names and shapes; batch-norm counters, which inference never reads, are left out."""
        own = _uncounted(module.state_dict())
        given = _uncounted(tensors)
        return cls(
            missing=tuple(name for name in own if name not in given),
            unexpected=tuple(name for name in given if name not in own),
            shapes=tuple(
                f"{name} is {_shape(given[name])} in the checkpoint, {_shape(own[name])} in the model"
                for name in own
                if name in given and _shape(own[name]) != _shape(given[name])
            ),
        )

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        """Counts and the first of each kind, one kind a line."""
        kinds = (
            ("missing in the checkpoint", self.missing),
            ("unknown to the model", self.unexpected),
            ("of another shape", self.shapes),
        )
        lines = []
        for kind, found in kinds:
            if found:
                more = ", …" if len(found) > _SHOWN else ""
                lines.append(f"  {len(found)} {kind}: {', '.join(found[:_SHOWN])}{more}")
        return "\n".join(lines)


def load_by_name(module: nn.Module, tensors: StateDict, metadata: Mapping[str, Any] | None) -> str | None:
    """Loads a state dict whose names and shapes are the model's, in place.

    Batch-norm counters may be absent (old checkpoints) or superfluous. The modules' own renaming of older versions,
    which `metadata` steers, applies.

    Returns:
        None where it fits, else torch's reason; the module's weights are then worthless.
    """
    own = module.state_dict()
    complete: OrderedDict[str, torch.Tensor] = OrderedDict(
        (name, tensor) for name, tensor in tensors.items() if name in own or not name.endswith(f".{_COUNTER}")
    )
    for name, tensor in own.items():
        if name.endswith(_COUNTER):
            complete.setdefault(name, tensor)
    if any(_shape(tensor) != _shape(own[name]) for name, tensor in complete.items() if name in own and tensor.ndim):
        return "types or shapes differ"
    complete._metadata = metadata if metadata else getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    try:
        module.load_state_dict(complete, strict=True)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def names_from_order(module: nn.Module, tensors: StateDict) -> StateDict:
    """Gives another code base's tensors the model's names, by position.

    Count, order and every shape must be equal. Where both names end with what a layer calls its parts (`weight`,
    `running_mean`, …) those must be equal too: neighbours of one shape could otherwise be swapped unseen. Batch-norm
    counters are left out on both sides.

    Raises:
        InputError: The first place where they part.
    """
    own, given = _uncounted(module.state_dict()), _uncounted(tensors)
    for position, ((name, expected), (other, tensor)) in enumerate(zip(own.items(), given.items(), strict=False), 1):
        roles = {name.rpartition(".")[2], other.rpartition(".")[2]}
        if _shape(expected) != _shape(tensor) or (len(roles) == 2 and roles <= _ROLES):
            raise InputError(
                f"position {position} of {len(own)}: the model has {name} {_shape(expected)}, "
                f"the checkpoint {other} {_shape(tensor)}"
            )
    if len(own) != len(given):
        longer, where = (own, "model") if len(own) > len(given) else (given, "checkpoint")
        raise InputError(
            f"the model has {len(own)} tensors, the checkpoint {len(given)}; "
            f"the {where} goes on with {list(longer)[min(len(own), len(given))]}"
        )
    return dict(zip(own, given.values(), strict=True))


def mismatch(
    model: str, checkpoint: Checkpoint, differences: Differences, reason: str, *, order_works: bool
) -> InputError:
    """The error for names that do not fit; `reason` is torch's, for where we see no difference."""
    if order_works:
        remedy = "Count, order and shapes are identical: --match order would load it, if it is the same architecture."
    elif any("pos_embed" in line or "position" in line for line in differences.shapes):
        remedy = "The checkpoint seems to be trained at another picture size: give --resize and --crop as in training."
    else:
        remedy = (
            "Pass the checkpoint of this architecture, or, for a changed head or network, its code as "
            "MODEL: file.py:factory (--match order would not help either)."
        )
    return InputError(f"{checkpoint.path} does not fit {model}:\n{str(differences) or reason}\n{remedy}")


def _uncounted(tensors: Mapping[str, torch.Tensor]) -> StateDict:
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] != _COUNTER}


def _shape(tensor: torch.Tensor) -> str:
    """Shape, and the type where it is not a float of some width, which float32 takes."""
    return str(list(tensor.shape)) if tensor.is_floating_point() else f"{tensor.dtype} {list(tensor.shape)}"
