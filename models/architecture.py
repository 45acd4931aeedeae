"""What MODEL names before any weights are in it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from torch import nn

from edgecls.models.checkpoint import StateDict
from edgecls.models.factory import FactoryModel
from edgecls.models.preprocess_override import KnownPreprocess
from edgecls.models.torchvision_zoo import TorchvisionModel
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels


class Architecture(Protocol):
    """A network that can be built, with or without its library's weights."""

    @property
    def name(self) -> str:
        """Short: `resnet18`, `vit_tiny_patch16_224`, the name of a factory."""
        ...

    def known_preprocess(self) -> KnownPreprocess:
        """What is known about its input."""
        ...

    def build(self, crop_px: int) -> nn.Module:
        """A new module with meaningless weights and the library's head, for square pictures of that side."""
        ...

    def trained(self, crop_px: int, *, headless: bool = False) -> tuple[nn.Module, Path | None]:
        """A module with the library's own weights, and the file that they came from.

        Args:
            crop_px: Side of its pictures.
            headless: Where the weights have no classifier, so has the module until `fit_classes`; else refused.

        Raises:
            InputError: There are none, or they are not here and cannot be fetched; the message names the file.
        """
        ...

    def fit_head(self, module: nn.Module, tensors: StateDict) -> str | None:
        """Changes the module's head to the one that the (name-matching) tensors were trained with; a note, if any."""
        ...

    def fit_classes(self, module: nn.Module, classes: int) -> None:
        """Changes the module's number of classes only."""
        ...

    def head(self, module: nn.Module, crop_px: int) -> tuple[str, ...]:
        """Names of the last layers, whose outputs are the classes, of a module for pictures of that side."""
        ...

    def ignores(self, name: str) -> bool:
        """Whether a tensor belongs to a part that only training uses."""
        ...

    def converted(self, module: nn.Module, tensors: StateDict) -> StateDict | None:
        """The tensors under the names of today, where the library itself renames those of older checkpoints."""
        ...

    def default_labels(self, classes: int) -> Labels | None:
        """The names of the classes that the library's weights have, if they are as many."""
        ...


def find_architecture(model: str) -> Architecture:
    """Finds what MODEL means: a factory, a torchvision name or a timm name, in this order.

    `torchvision:NAME` and `timm:NAME` look in one library only; a name that both have means torchvision's.

    Raises:
        InputError: Nothing goes by that name; close matches are suggested and never taken.
    """
    library, colon, name = model.partition(":")
    if not model.strip():
        raise InputError(
            "no MODEL was given: name a torchvision or timm classifier (resnet18, timm:mobilenetv3_small_100), "
            "file.py:factory, package.module:factory or an .onnx file."
        )
    if library == "torchvision" and colon:
        return _torchvision(name) or _unknown(model, "torchvision", _torchvision_names, prefix="torchvision:")
    if library == "timm" and colon:
        return _timm(name) or _unknown(model, "timm", _timm_names, prefix="timm:")
    if colon or model.endswith(".py"):
        return FactoryModel(model)
    return _torchvision(model) or _timm(model) or _unknown(model, "torchvision or timm", _all_names, prefix="")


def _torchvision(name: str) -> Architecture | None:
    return TorchvisionModel(name) if name in TorchvisionModel.names() else None


def _timm(name: str) -> Architecture | None:
    from edgecls.models.timm_zoo import TimmModel  # timm takes a second to import

    return TimmModel(name) if TimmModel.has(name) else None


def _torchvision_names() -> Iterable[str]:
    return TorchvisionModel.names()


def _timm_names() -> Iterable[str]:
    from edgecls.models.timm_zoo import TimmModel

    return TimmModel.names()


def _all_names() -> Iterable[str]:
    return {*_torchvision_names(), *_timm_names()}


def _unknown(model: str, library: str, names: Callable[[], Iterable[str]], *, prefix: str) -> Architecture:
    asked = model.removeprefix(prefix)
    known = list(names())
    if Path(asked).suffix.lower() in {".pth", ".pt", ".th", ".bin", ".ckpt", ".safetensors", ".tar"}:
        raise InputError(f"{model} is a checkpoint, not a MODEL: name its architecture and pass --checkpoint {asked}.")
    architecture, dot, _ = asked.partition(".")
    tagged = sorted(name for name in known if name.startswith(f"{architecture}."))
    if dot and tagged:
        raise InputError(f"timm has no weights '{asked}', but {', '.join(prefix + name for name in tagged[:8])}.")
    close = difflib.get_close_matches(asked.lower().replace("-", "_"), known, n=3, cutoff=0.7)
    if close:
        raise InputError(f"{library} has no classifier '{asked}'. Close: {', '.join(prefix + name for name in close)}.")
    raise InputError(
        f"{library} has no classifier '{asked}', nor one that is spelled nearly so. "
        "A network of your own is file.py:factory or package.module:factory."
    )
