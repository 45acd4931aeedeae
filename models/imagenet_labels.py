"""The 1,000 classes of ImageNet, as the libraries know them without a download."""

from __future__ import annotations

from functools import cache

from edgecls.models import torchvision_operators  # noqa: F401 (must come before torchvision)
from edgecls.runtime.labels import Labels


@cache
def imagenet_labels() -> Labels:
    """Names from torchvision, WordNet ids from timm, both in the usual order of the logits."""
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return Labels(names=tuple(names), ids=tuple(ImageNetInfo("imagenet-1k").label_names()))
