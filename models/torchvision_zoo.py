"""The classifiers of torchvision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before torchvision)

# isort: split
import torchvision
from torchvision.transforms._presets import ImageClassification

from edgecls.models.checkpoint import StateDict, read_checkpoint
from edgecls.models.download import fetch_weights, torch_hub_folder
from edgecls.models.head import fit_head, last_layer, resize_classes
from edgecls.models.imagenet_labels import imagenet_labels
from edgecls.models.matching import load_by_name
from edgecls.models.preprocess_override import KnownPreprocess
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels

_INCEPTIONS = frozenset({"googlenet", "inception_v3"})
_AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")
# Dots in module names, which DenseNet's released files still have.
_DENSENET_NAME = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


@dataclass(frozen=True)
class TorchvisionModel:
    """One of torchvision's classifiers.

    GoogLeNet and Inception v3 are built without their auxiliary heads and, as with torchvision's own weights, with
    `transform_input`: nearly every checkpoint of them was fine-tuned from those.
    """

    name: str

    @staticmethod
    @cache
    def names() -> frozenset[str]:
        """Names of the image classifiers: no detection, segmentation, video or pre-quantized models."""
        return frozenset(torchvision.models.list_models(module=torchvision.models))

    @property
    def _weights(self) -> Any:
        return torchvision.models.get_model_weights(self.name).DEFAULT

    def known_preprocess(self) -> KnownPreprocess:
        """The transforms of the default weights."""
        transforms = self._weights.transforms()
        assert isinstance(transforms, ImageClassification)
        transform_input = " (network with transform_input)" if self.name in _INCEPTIONS else ""
        return KnownPreprocess(
            source=f"torchvision {self._weights}{transform_input}",
            fields={
                "mode": "shorter",
                "resize_px": transforms.resize_size[0],
                "crop_px": transforms.crop_size[0],
                "interpolation": transforms.interpolation.value,
                "mean": tuple(transforms.mean),
                "std": tuple(transforms.std),
                "colour": "rgb",
                "exif": "ignore",
            },
            unusable={},
        )

    def build(self, crop_px: int) -> nn.Module:
        """A module with meaningless weights for square pictures of side `crop_px`."""
        options: dict[str, Any] = {}
        if self.name in _INCEPTIONS:
            options = {"aux_logits": False, "init_weights": False, "transform_input": True}
        elif self.name.startswith("vit_"):
            options = {"image_size": crop_px}
        elif self.name.startswith("maxvit"):
            options = {"input_size": (crop_px, crop_px)}
        try:
            module = torchvision.models.get_model(self.name, weights=None, **options)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise InputError(f"torchvision cannot build {self.name} for {crop_px}x{crop_px} px: {error}") from error
        assert isinstance(module, nn.Module)
        return module

    def trained(self, crop_px: int, *, headless: bool = False) -> tuple[nn.Module, Path | None]:
        """The default ImageNet weights, from torch's cache or the network."""
        path = fetch_weights(self._weights.url, torch_hub_folder(), model=self.name)
        checkpoint = read_checkpoint(path).without(self.ignores)
        module = self.build(crop_px)
        tensors = self.converted(module, checkpoint.tensors) or checkpoint.tensors
        if load_by_name(module, tensors, checkpoint.metadata):
            own_px = self.known_preprocess().fields["crop_px"]
            raise InputError(
                f"torchvision's weights for {self.name} ({path}) do not fit the network for {crop_px} px pictures: "
                f"they are for {own_px} px. Leave --crop out, or pass a --checkpoint that was trained at {crop_px} px."
                if crop_px != own_px
                else f"{path} is not what torchvision's {self.name} expects: delete it, so that it is fetched again."
            )
        return module, path

    def fit_head(self, module: nn.Module, tensors: StateDict) -> str | None:
        """Rebuilds the head as the checkpoint's."""
        layer = last_layer(module)
        return fit_head(module, layer, tensors) if layer else None

    def fit_classes(self, module: nn.Module, classes: int) -> None:
        """Replaces the last layer."""
        layer = last_layer(module)
        if layer:
            resize_classes(module, layer, classes)

    def head(self, module: nn.Module, crop_px: int) -> tuple[str, ...]:
        """The last layer."""
        layer = last_layer(module)
        return (layer,) if layer else ()

    def ignores(self, name: str) -> bool:
        """Auxiliary heads, which only training uses."""
        return self.name in _INCEPTIONS and _AUXILIARY.match(name) is not None

    def converted(self, module: nn.Module, tensors: StateDict) -> StateDict | None:
        """DenseNet's released names without the dots that torch no longer allows."""
        if not self.name.startswith("densenet"):
            return None
        return {_DENSENET_NAME.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}

    def default_labels(self, classes: int) -> Labels | None:
        """ImageNet's classes: every torchvision classifier was trained on its 1,000."""
        return imagenet_labels() if classes == 1000 else None
