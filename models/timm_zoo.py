"""The classifiers of timm."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before timm, which imports torchvision)

# isort: split
import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import get_pretrained_cfg, is_model, list_pretrained

from edgecls.models.checkpoint import StateDict
from edgecls.models.download import fetch_hub_weights, fetch_weights, torch_hub_folder
from edgecls.models.head import fit_head, resize_classes
from edgecls.models.imagenet_labels import imagenet_labels
from edgecls.models.preprocess_override import KnownPreprocess
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class TimmModel:
    """One of timm's classifiers: `NAME` or `NAME.tag`."""

    name: str

    @staticmethod
    @cache
    def names() -> frozenset[str]:
        """Names without and with the tag of their weights."""
        return frozenset([*timm.list_models(), *list_pretrained()])

    @staticmethod
    def has(name: str) -> bool:
        """Whether timm knows the name, and its tag where it has one."""
        architecture, dot, _ = name.partition(".")
        return is_model(architecture) and (not dot or name in TimmModel.names())

    @property
    def _config(self) -> dict[str, Any]:
        config = get_pretrained_cfg(self.name)
        return {} if config is None else dict(config.to_dict())

    @property
    def _source(self) -> str:
        tag = self._config.get("tag")
        name = self.name if "." in self.name or not tag else f"{self.name}.{tag}"
        return f"timm pretrained_cfg {name}"

    def known_preprocess(self) -> KnownPreprocess:
        """The preprocessing of the weights' `pretrained_cfg`."""
        return preprocess_from_config(self._config, self._source)

    def build(self, crop_px: int) -> nn.Module:
        """A module with meaningless weights for square pictures of side `crop_px`."""
        return self._create(crop_px)

    def trained(self, crop_px: int, *, headless: bool = False) -> tuple[nn.Module, Path | None]:
        """The weights that the name (or its default tag) stands for, loaded by timm's own code."""
        config = self._config
        if not self._classes and not headless:
            raise InputError(
                f"the weights of timm's {self.name} have no classifier: pass a fine-tuned --checkpoint FILE."
            )
        path = self._weights_file(config)
        overlay = {"file": str(path), "custom_load": path.suffix == ".npz"}
        return self._create(crop_px, num_classes=self._classes, pretrained=True, pretrained_cfg_overlay=overlay), path

    def _weights_file(self, config: Mapping[str, Any]) -> Path:
        if config.get("file"):
            return Path(config["file"])
        if config.get("hf_hub_id"):
            own = config.get("hf_hub_filename")
            return fetch_hub_weights(config["hf_hub_id"], (own,) if own else _HUB_FILES, model=f"timm:{self.name}")
        if isinstance(config.get("url"), str) and config["url"]:
            return fetch_weights(config["url"], torch_hub_folder(), model=f"timm:{self.name}")
        raise InputError(f"timm has no trained weights for {self.name}: pass yours with --checkpoint FILE.")

    @property
    def _classes(self) -> int:
        return int(self._config.get("num_classes", 1000) or 0)

    def _create(self, crop_px: int, **options: Any) -> nn.Module:
        if self._config.get("fixed_input_size"):
            options["img_size"] = crop_px
        options.setdefault("num_classes", max(self._classes, 0) or 1000)
        try:
            module = timm.create_model(self.name, **options)
        except Exception as error:  # each of timm's 90 files raises what it likes
            file = options.get("pretrained_cfg_overlay", {}).get("file")
            what = f"load {file} into {self.name}" if file else f"build {self.name}"
            raise InputError(
                f"timm cannot {what} for {crop_px}x{crop_px} px: {type(error).__name__}: {error}"
            ) from error
        assert isinstance(module, nn.Module)
        return module

    def _head_layers(self) -> tuple[str, ...]:
        names = self._config.get("classifier")
        return (names,) if isinstance(names, str) else tuple(names or ())

    def fit_head(self, module: nn.Module, tensors: StateDict) -> str | None:
        """Rebuilds the head (or both, of a distilled network) as the checkpoint's."""
        layers = self._head_layers()
        rows = {len(tensors[f"{layer}.weight"]) for layer in layers if f"{layer}.weight" in tensors}
        if len(rows) == 1:
            self.fit_classes(module, rows.pop())
        modules = dict(module.named_modules())
        notes = [note for layer in layers if layer in modules and (note := fit_head(module, layer, tensors))]
        return "; ".join(notes) or None

    def fit_classes(self, module: nn.Module, classes: int) -> None:
        """Resizes the layers that the configuration names; `reset_classifier` where those are no plain layers."""
        if getattr(module, "num_classes", None) == classes:
            return
        layers = self._head_layers()
        modules = dict(module.named_modules())
        if layers and all(isinstance(modules.get(layer), (nn.Linear, nn.Conv2d)) for layer in layers):
            for layer in layers:
                resize_classes(module, layer, classes)
            module.num_classes = classes  # type: ignore[assignment]
        else:
            module.reset_classifier(classes)  # type: ignore[operator]

    def head(self, module: nn.Module, crop_px: int) -> tuple[str, ...]:
        """The layers that the configuration names, as `reset_classifier` left them."""
        modules = dict(module.named_modules())
        return tuple(layer for layer in self._head_layers() if layer in modules)

    def ignores(self, name: str) -> bool:
        """Auxiliary heads, which only training uses."""
        return name.startswith("AuxLogits.")

    def converted(self, module: nn.Module, tensors: StateDict) -> StateDict | None:
        """What timm's own filter for released checkpoints of this network makes of the tensors."""
        network = sys.modules[type(module).__module__]
        convert = getattr(network, "checkpoint_filter_fn", None)
        if convert is None:
            return None
        try:
            converted = convert(dict(tensors), module)
        except Exception:  # the filter was not written for these tensors
            return None
        if not isinstance(converted, dict) or any(
            converted[name].shape != tensor.shape for name, tensor in tensors.items() if name in converted
        ):
            return None  # filters also resample position embeddings for another picture size, which nobody asked for
        return converted

    def default_labels(self, classes: int) -> Labels | None:
        """The ImageNet subset that the library's weights were trained on, if it has that many classes."""
        if classes != self._classes:
            return None
        if classes == 1000:
            return imagenet_labels()
        subset = infer_imagenet_subset({"num_classes": classes})
        if subset is None:
            return None
        info = ImageNetInfo(subset)
        if info.num_classes() != classes:
            return None
        return Labels(names=tuple(info.label_descriptions()), ids=tuple(info.label_names()))


def preprocess_from_config(config: Mapping[str, Any], source: str) -> KnownPreprocess:
    """Reads timm's description of an input (`pretrained_cfg`), for evaluation at the training size.

    Raises:
        InputError: The network does not take square RGB pictures.
    """
    data = resolve_data_config(pretrained_cfg=dict(config)) if config else {}
    if not data:
        return KnownPreprocess(source=source, fields={}, unusable={})
    channels, height_px, width_px = data["input_size"]
    if channels != 3 or height_px != width_px:
        raise InputError(
            f"{source} takes {channels}x{height_px}x{width_px} pictures: edgecls takes square RGB ones only."
        )
    fields: dict[str, Any] = {
        "resize_px": math.floor(height_px / data["crop_pct"]),
        "crop_px": height_px,
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
        "colour": "rgb",
        "exif": "ignore",
    }
    unusable: dict[str, str] = {}
    if data["crop_mode"] in {"center", "squash"}:
        fields["mode"] = "squash" if data["crop_mode"] == "squash" else "shorter"
    else:
        unusable["mode"] = f"crop mode '{data['crop_mode']}'"
    if data["interpolation"] in {"bilinear", "bicubic"}:
        fields["interpolation"] = data["interpolation"]
    else:
        unusable["interpolation"] = f"'{data['interpolation']}' interpolation"
    return KnownPreprocess(source=source, fields=fields, unusable=unusable)
