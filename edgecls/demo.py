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

from edgecls.runtime import ImageSet, InputError, MissingExtraError, Preprocess
from edgecls.runtime.bundle import Precision
from edgecls.runtime.progress import Advance, Progress, SilentProgress

if TYPE_CHECKING:
    from edgecls.bench.gate_result import GateResult
    from edgecls.bench.report import Report
    from edgecls.models import Classifier

MAX_DROP_PP = 2.0

_TARGETS = ("onnxruntime", "openvino")
"""Those that the extra `demo` installs; they run on every machine."""
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_MODEL = "torchvision:mobilenet_v3_small"
_SIDE_PX = 64
_PARTS = {"test": 450, "calibration": 160}
"""Pictures of each part; the rest trains."""


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
        InputError: The folder cannot be written, or holds what no demo made; choose another `-o`.
        MissingExtraError: A package of the extra `demo` is missing; install it.
    """
    from edgecls.bench.gate import judge
    from edgecls.bench.gate_result import Limits, Margin
    from edgecls.bench.measure import measure
    from edgecls.models import open_classifier
    from edgecls.models.evaluate import evaluate, labelled_images

    data = folder / "data"
    classifier = open_classifier(str(_train(folder, data, seed, progress)))
    evaluation, _ = evaluate(classifier, labelled_images(data / "test", classifier.labels), threads=1)
    assert evaluation.metrics.top1 is not None
    bundles = _export(classifier, data / "calibration", folder, seed, progress)
    report_path = folder / "report.json"
    report = measure(
        bundles, data / "test", output=report_path, reference=bundles[0], profile="smoke", threads=1, progress=progress
    )
    gate = judge(report, Limits(max_drop=Margin(MAX_DROP_PP)))
    return DemoResult(folder, bundles, report_path, report, gate, evaluation.metrics.top1)


def _train(folder: Path, data: Path, seed: int, progress: Progress) -> Path:
    """Writes the pictures into `data` and a network that learned them into `folder`; returns its file."""
    from edgecls.models.recipe import Recipe
    from edgecls.models.train import train, unfinished_training
    from edgecls.models.training_data import TrainingData

    checkpoint, marker = folder / "digits.safetensors", folder / ".edgecls-demo"
    try:
        if folder.exists() and any(folder.iterdir()) and not (marker.exists() or checkpoint.exists()):
            raise InputError(f"{folder} holds files that no demo made: choose a new folder: -o.")
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        write_digits(data, seed)
        unfinished_training(checkpoint).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write the demo into {folder}: {error.strerror}. Choose another folder: -o."
        ) from error
    half = (0.5, 0.5, 0.5)
    train(
        _MODEL,
        TrainingData.open(data / "train", progress=progress),
        preprocess=Preprocess(resize_px=_SIDE_PX, crop_px=_SIDE_PX, mean=half, std=half),
        output=checkpoint,
        recipe=Recipe.from_scratch(
            epochs=10,
            batch_size=64,
            learning_rate=4e-3,
            crop_scale=0.6,
            flip=False,  # a mirrored 2 is no 2
            trivial_augment=False,
            erasing=0.0,
            seed=seed,
        ),
        from_scratch=True,
        threads=1,  # kernels this small gain nothing from a second
        progress=_StagesOnly(progress),
    )
    return checkpoint


def _export(classifier: Classifier, calibration: Path, folder: Path, seed: int, progress: Progress) -> tuple[Path, ...]:
    """Writes a bundle for every target and precision; the first is fp32."""
    from edgecls.export.job import export_bundle
    from edgecls.export.trace import trace

    images = ImageSet.from_folder(calibration)
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
                calibration=images,
                seed=seed,
                traced=traced,
                progress=_StagesOnly(progress),
            )
            bundles.append(path)
    return tuple(bundles)


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
