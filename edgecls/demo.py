"""The whole way in a few minutes, on data and a model that need no download.

scikit-learn brings 1,797 scans of handwritten digits, 8 x 8 pixels. A small MobileNetV3 learns them from scratch, and
the product's own functions turn it into bundles, measure them and judge them, as they would anybody's classifier.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime import ImageSet, InputError, Labels, MissingExtraError, Preprocess
from edgecls.runtime.bundle import Precision
from edgecls.runtime.progress import Advance, Progress, SilentProgress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgecls.bench.report import GateResult, Report

MAX_DROP_PP = 2.0

_TARGETS = ("onnxruntime", "openvino")
"""Those that the extra `demo` installs; they run on every machine."""
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_MODEL = "torchvision:mobilenet_v3_small"
_SIDE_PX = 64
_PREPROCESS = Preprocess(resize_px=_SIDE_PX, crop_px=_SIDE_PX, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_LABELS = Labels(names=tuple("0123456789"))
_PARTS = {"test": 450, "calibration": 160}
"""Pictures of each part; the rest trains."""
_EPOCHS = 9
_BATCH = 64
_LEARNING_RATE = 4e-3
_SHIFT_PX = 6


class _StagesOnly:
    """Passes on the stages and drops the exports' notes: a newcomer reads the table."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Passes it on."""
        return self._progress.stage(title, total)

    def note(self, message: str) -> None:
        """Drops it."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    folder: Path
    bundles: tuple[Path, ...]
    report_path: Path
    report: Report
    gate: GateResult
    torch_top1: float
    """Top-1 of the trained network in torch on the test part, 0..1."""


def run_demo(folder: Path, *, seed: int = 0, progress: Progress = SilentProgress()) -> DemoResult:  # noqa: B008
    """Trains, exports fp32 and INT8 for every target, measures and judges.

    Args:
        folder: Where everything is written; created, and files of an earlier demo are replaced.
        seed: Of the split and the training; the same seed gives the same network on the same machine.
        progress: Told about the stages.

    Raises:
        InputError: The folder cannot be written; choose another `-o`.
        MissingExtraError: A package of the extra `demo` is missing; install it.
    """
    from edgecls.bench.gate import judge
    from edgecls.bench.measure import measure
    from edgecls.export.job import export_bundle
    from edgecls.export.trace import trace
    from edgecls.models import PreprocessOverride, open_classifier

    data, checkpoint, labels = folder / "data", folder / "digits.safetensors", folder / "labels.txt"
    try:
        write_digits(data, seed)
        labels.write_text("".join(f"{name}\n" for name in _LABELS.names), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write the demo into {folder}: {error.strerror}. Choose another folder: -o."
        ) from error
    torch_top1 = train(data, checkpoint, seed, progress)
    classifier = open_classifier(
        _MODEL,
        checkpoint=checkpoint,
        labels=_LABELS,
        override=PreprocessOverride(
            resize_px=_SIDE_PX, crop_px=_SIDE_PX, mean=_PREPROCESS.mean, std=_PREPROCESS.std, interpolation="bilinear"
        ),
    )
    calibration = ImageSet.from_folder(data / "calibration")
    with progress.stage("Exporting the graph"):
        traced = trace(classifier)
    bundles = []
    for target in _TARGETS:
        for precision in _PRECISIONS:
            path = folder / f"digits-{target}-{precision}.edgecls"
            export_bundle(
                classifier,
                target=target,
                precision=precision,
                output=path,
                calibration=calibration,
                seed=seed,
                traced=traced,
                progress=_StagesOnly(progress),
            )
            bundles.append(path)
    report_path = folder / "report.json"
    report = measure(
        bundles, data / "test", output=report_path, reference=bundles[0], profile="smoke", threads=1, progress=progress
    )
    gate = judge(report, MAX_DROP_PP)
    return DemoResult(folder, tuple(bundles), report_path, report, gate, torch_top1)


def write_digits(folder: Path, seed: int) -> None:
    """Writes the scans as PNG files, `PART/DIGIT/NUMBER.png`, into three disjoint parts with equal shares of digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("demo", "The demo's data") from error
    from PIL import Image

    for stale in folder.glob("*/[0-9]/[0-9][0-9][0-9][0-9].png"):
        stale.unlink()  # another seed put it into another part
    digits = load_digits()
    parts = _split(digits.target, seed)
    scans = np.minimum(digits.images * 16, 255).astype(np.uint8)
    for number, (scan, digit, part) in enumerate(zip(scans, digits.target, parts, strict=True)):
        path = folder / part / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scan).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC).save(path)


def _split(digits: NDArray[np.int64], seed: int) -> list[str]:
    """The part of every scan: within each digit, in random order, the first to test, the next to calibration."""
    random = np.random.default_rng(seed)
    parts = np.full(len(digits), "train", dtype=object)
    for digit in range(10):
        members = random.permutation(np.flatnonzero(digits == digit))
        start = 0
        for part, count in _PARTS.items():
            parts[members[start : start + count // 10]] = part
            start += count // 10
    return list(parts)


def train(data: Path, checkpoint: Path, seed: int, progress: Progress) -> float:
    """Trains the network, writes its weights and returns its top-1 on the test part, 0..1."""
    from edgecls.models import torchvision_operators  # noqa: F401  torchvision may not load without it

    try:
        import torch
        import torchvision
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError("demo", "The demo's training") from error

    images, labels = _tensors(data / "train")
    threads = torch.get_num_threads()
    # One thread: kernels this small gain nothing from a second, and the sums keep their order.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = torchvision.models.mobilenet_v3_small(num_classes=10).to(memory_format=torch.channels_last)
            _fit(network, images, labels, progress)
        network.eval()
        test_images, test_labels = _tensors(data / "test")
        with torch.inference_mode():
            top1 = float((network(test_images).argmax(dim=1) == test_labels).double().mean())
    finally:
        torch.set_num_threads(threads)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, checkpoint)
    return top1


def _fit(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, progress: Progress) -> None:
    """AdamW, one learning-rate cycle, random shifts."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 is for a thousand times as many steps
    batches = len(images) // _BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_EPOCHS * batches)
    network.train()
    with progress.stage("Training", _EPOCHS) as advance:
        for _ in range(_EPOCHS):
            order = torch.randperm(len(images))
            for batch in order[: batches * _BATCH].view(batches, _BATCH):
                shift = torch.randint(-_SHIFT_PX, _SHIFT_PX + 1, (2,)).tolist()
                logits = network(images[batch].roll(shift, dims=(2, 3)).contiguous(memory_format=torch.channels_last))
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(logits, labels[batch], label_smoothing=0.1)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
            advance(1)


def _tensors(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A folder's pictures as the device will see them, float32 `[n, 3, 64, 64]` normalised, and their classes."""
    import torch

    image_set = ImageSet.from_folder(folder, _LABELS)
    pixels = np.stack([_PREPROCESS.pixels(image_set.root / image.path) for image in image_set.images])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_PREPROCESS.mean, _PREPROCESS.std))
    classes = torch.tensor([image.label for image in image_set.images])
    return (images - mean) / std, classes
