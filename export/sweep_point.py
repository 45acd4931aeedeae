"""One point of a sweep: a model on a target, in a precision, by a recipe; exported, and measured for its accuracy.

What a point gives is addressed by what decides it, and holds no time and no name of a machine: whoever computes it
again gets the same bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgecls.bench.accuracy import Answers, classify_images, summarise
from edgecls.bench.report import Accuracy, ArtifactRecord, CalibrationSummary
from edgecls.bench.subject import Subject
from edgecls.calibration.collect import MINIMUM
from edgecls.calibration.quantization import Quantization
from edgecls.export.job import export_bundle
from edgecls.export.versions import installed_versions
from edgecls.models.classifier import Classifier
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.bundle import Bundle, Precision
from edgecls.runtime.cpu import Isa, limit_threads
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import EdgeclsError, EngineError, InputError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.session import load

SCHEMA = "edgecls.sweep-point/1"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Where a point stands in its sweep, and everything else that decides what comes out of it."""

    model: str
    """Its name in the sweep."""
    target: str
    precision: Precision
    recipe: str | None
    """Its name in the sweep; None where nothing is quantized."""
    quantization: Quantization | None
    classifier_sha256: str
    """As `classifier_digest`."""
    images_sha256: str
    """Digest of the pictures that measure."""
    calibration_sha256: str | None
    """Digest of the pictures that calibrate, as drawn; None where none do."""
    isa: Isa
    seed: int
    packages: dict[str, str]
    """As `installed_versions`."""

    @property
    def name(self) -> str:
        """`lite0-openvino-int8-minmax`."""
        return "-".join(filter(None, (self.model, self.target, self.precision, self.recipe)))

    @property
    def key(self) -> str:
        """The address of what comes out: sha256, hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def stem(self) -> str:
        """Name of its files without their suffixes, for people and by content."""
        return f"{self.name}-{self.key[:12]}"


class PointResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """What a point gave: `STEM.json`, beside `STEM.edgecls` and `STEM.predictions.npz`."""

    key: str
    point: Point
    artifact: ArtifactRecord
    engine: EngineInfo
    calibration: CalibrationSummary | None
    parity_max_abs: float
    """As `ExportResult.parity_max_abs`."""
    accuracy: Accuracy
    """Paired with the model's fp32; the reference itself is paired with itself."""
    notes: tuple[str, ...]
    """Of the export."""

    def to_json(self) -> bytes:
        """What stands in the file."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2) + b"\n"


@dataclass(frozen=True)
class Task:
    """A point and what computes it. It can be pickled, and everything that it names is found from any folder."""

    point: Point
    open_model: Callable[[], Classifier]
    images: ImageSet
    """With labels; they measure."""
    calibration: ImageSet | None
    """As drawn."""
    folder: Path
    """Takes the files."""
    reference: Path | None
    """The model's fp32 bundle; None where the point is just that."""

    @property
    def bundle(self) -> Path:
        """Where the point's bundle stands."""
        return self.folder / f"{self.point.stem}.edgecls"

    def result(self) -> PointResult | None:
        """What the point gave, if all of its files are there whole."""
        try:
            result = msgspec.json.decode(self._file(".json").read_bytes(), type=PointResult)
            found = (result.key, hashlib.sha256(self.bundle.read_bytes()).hexdigest())
        except (OSError, msgspec.DecodeError):
            return None
        whole = found == (self.point.key, result.artifact.sha256) and self._file(".predictions.npz").is_file()
        return result if whole else None

    def run(self) -> None:
        """Exports, measures and writes; the result is the last of the files.

        Raises:
            EdgeclsError: The point cannot be exported or measured; or this machine has another model or other packages
                than the point was made for.
        """
        point = self.point
        if installed_versions() != point.packages:
            others = installed_versions().items() - point.packages.items()
            told = sorted(f"{name} {version}" for name, version in others)
            raise UnsupportedError(
                f"this machine has other packages than the sweep's ({', '.join(told) or 'some are missing'}): "
                "install the same versions everywhere"
            )
        classifier = self.open_model()
        if classifier_digest(classifier) != point.classifier_sha256:
            raise InputError(f"{classifier.model} is another here than when the sweep began: sweep again")
        made = export_bundle(
            classifier,
            target=point.target,
            precision=point.precision,
            output=self.bundle,
            calibration=self.calibration,
            calibration_size=max(MINIMUM, len(self.calibration or ())),
            quantization=point.quantization or Quantization(),
            isa=point.isa,
            seed=point.seed,
            threads=1,
            timed=False,
        )
        with ExitStack() as stack:
            paths = (self.bundle,) if self.reference is None else (self.bundle, self.reference)
            sessions = [stack.enter_context(load(path, threads=1)) for path in paths]
            engine = sessions[0].engine_info
            answers = classify_images(sessions, self.images, len(sessions) - 1)
        _refuse_doubtful(answers, engine)
        subject, predictions = Subject(point.name, Bundle(self.bundle)), self._file(".predictions.npz")
        answers.write(predictions, len(classifier.labels))
        result = PointResult(
            key=point.key,
            point=point,
            artifact=subject.artifact,
            engine=engine,
            calibration=subject.calibration,
            parity_max_abs=made.parity_max_abs,
            accuracy=summarise(answers, 0, len(sessions) - 1, classifier.labels, predictions.name),
            notes=made.notes,
        )
        with atomic_file(self._file(".json")) as file:
            file.write(result.to_json())

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.point.stem}{suffix}"


def attempt(task: Task) -> str | None:
    """Runs a task in a worker, on one thread: None, or what went wrong, for not every exception can travel."""
    import torch

    torch.set_num_threads(1)
    limit_threads(1)
    try:
        task.run()
    except EdgeclsError as error:
        return str(error)
    except Exception as error:
        if os.environ.get("EDGECLS_DEBUG") == "1":
            traceback.print_exc()
        return f"{type(error).__name__}: {error}. This is a bug in edgecls; EDGECLS_DEBUG=1 shows where."
    return None


def classifier_digest(classifier: Classifier) -> str:
    """sha256, hex, over all that makes a classifier: weights, preprocessing, labels, and the files of its code.

    Of own code those are the file and all others of its folder, for it may import them.
    """
    said = (classifier.name, classifier.model, classifier.checkpoint_sha256, classifier.preprocess, classifier.labels)
    digest = hashlib.sha256(msgspec.json.encode(said))
    if not isinstance(classifier.source, Path):  # otherwise the checkpoint is the file, with everything in it
        place = classifier.model.rpartition(":")[0]
        own = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
        code: set[str | Path | None] = {*Path(own).parent.glob("*.py")} if own else set()
        for part in classifier.source.modules():
            with suppress(TypeError, OSError):  # code that no file holds
                code.add(inspect.getsourcefile(type(part)))
        for content in sorted(Path(file).read_bytes() for file in code if file):
            digest.update(hashlib.sha256(content).digest())
        for name, tensor in classifier.source.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _refuse_doubtful(answers: Answers, engine: EngineInfo) -> None:
    """What makes a report of `edgecls bench` invalid fails a point."""
    if engine.provider_used != engine.provider_requested:
        raise EngineError(f"the engine fell back from {engine.provider_requested} to {engine.provider_used}")
    if answers.unreadable:
        image, why = answers.unreadable[0]
        raise InputError(
            f"{len(answers.unreadable)} pictures cannot be read (the first, {image.path}: {why}): repair or remove them"
        )
    if broken := answers.not_finite(0):
        raise EngineError(
            f"{broken} of {len(answers.images)} pictures gave logits that are not finite: choose another precision "
            "or recipe"
        )
