"""What a trained classifier is worth before it is exported: its own answers, on the pixels that devices will see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.accuracy import Answers, Unreadable, decode_ahead, nothing_readable, pixels_key
from edgecls.bench.metrics import ClassificationMetrics, classification_metrics, has_scikit_learn, top_classes
from edgecls.bench.report import predictions_path
from edgecls.bench.softmax import log_softmax
from edgecls.models.classifier import Classifier
from edgecls.models.normalize import normalized
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageFile, ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Advance, Progress, SilentProgress

if TYPE_CHECKING:
    from torch import nn

Network: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From float32 `[batch, 3, height, width]` to float32 `[batch, classes]`."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="edgecls.evaluation/1"):
    """What `edgecls evaluate` found. Rates are 0..1; what could not be computed is null."""

    model: str
    """As it was asked for."""
    checkpoint_sha256: str | None
    preprocess: Preprocess
    dataset_sha256: str
    """Digest of the image set."""
    n: int
    """Pictures in the set, unreadable ones included."""
    valid: bool
    """Whether nothing stands in `reasons`."""
    reasons: tuple[str, ...]
    """Pictures that could not be read, and answers that were not finite."""
    classes: int
    """Of the classifier, whether they occur or not."""
    metrics: ClassificationMetrics


def evaluate(
    classifier: Classifier,
    images: ImageSet,
    *,
    batch_size: int = 32,
    threads: int | None = None,
    progress: Progress = SilentProgress(),  # noqa: B008
) -> tuple[Evaluation, Answers]:
    """Classifies pictures with the network itself, in float32 on the CPU.

    Args:
        classifier: The classifier.
        images: Pictures in class folders, opened with the classifier's labels.
        batch_size: Pictures that a torch module sees at a time. An ONNX file sees one, or its fixed batch.
        threads: Of the network; by default the CPUs that this process may use.
        progress: Told about the stages.

    Returns:
        The evaluation, and every answer.

    Raises:
        InputError: The pictures have no labels, not one of them can be read, or the network fails on them; give
            others. A picture that cannot be read among good ones is no error: it makes the evaluation invalid.
    """
    if batch_size < 1:
        raise InputError(f"a batch of {batch_size} pictures holds none: give at least 1")
    _refuse_unlabelled(images)
    for note in classifier.notes:
        progress.note(note)
    with (
        _network(classifier, batch_size, cpu_count() if threads is None else threads) as (network, size),
        progress.stage("Evaluating", len(images)) as advance,
    ):
        answers = _answers(network, size, images, classifier.preprocess, advance)
    truth = answers.labels
    assert truth is not None
    scores = None if answers.scores is None else answers.scores[0]
    reasons = [f"cannot read {path}: {why}" for path, why in images.missing]
    reasons += [f"cannot read {image.path}: {why}" for image, why in answers.unreadable]
    if answers.not_finite(0):
        reasons.append(f"{answers.not_finite(0)} pictures gave logits that are not finite numbers")
    return Evaluation(
        model=classifier.public_model,
        checkpoint_sha256=classifier.checkpoint_sha256,
        preprocess=classifier.preprocess,
        dataset_sha256=images.digest,
        n=len(images) + len(images.missing),
        valid=not reasons,
        reasons=tuple(reasons),
        classes=len(classifier.labels),
        metrics=classification_metrics(truth, answers.top[0], scores, classifier.labels),
    ), answers


def labelled_images(data: Path, labels: Labels, limit: int | None = None) -> ImageSet:
    """Opens a folder for `evaluate`.

    Args:
        data: The folder, with a sub-folder a class.
        labels: Of the classifier.
        limit: Largest number of pictures, taken by content hash and spread over the classes.

    Raises:
        InputError: The folder is flat, or does not fit the labels; the message says what to do.
    """
    images = ImageSet.from_folder(data, labels, tolerant=True)
    _refuse_unlabelled(images)
    return images if limit is None else images.take(limit)


def write_evaluation(evaluation: Evaluation, answers: Answers, path: Path) -> None:
    """Writes the evaluation, and first every answer beside it, as `Answers.write` says.

    Raises:
        InputError: The files cannot be written; choose another `-o`.
    """
    answers.write(predictions_path(path), evaluation.classes)
    with atomic_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(evaluation), indent=2) + b"\n")


def _refuse_unlabelled(images: ImageSet) -> None:
    """Refuses pictures of which nobody knows what they show."""
    image = next((image for image in images.images if image.label is None), None)
    if image is not None:
        raise InputError(
            f"the picture {image.path} of {images.root} has no label, so no answer can be judged: put the pictures "
            "into sub-folders that are named after their classes"
        )


def _answers(network: Network, size: int, images: ImageSet, preprocess: Preprocess, advance: Advance) -> Answers:
    """Every answer to the pictures that can be read; batches are full but for the last."""
    seen: list[ImageFile] = []
    unreadable: list[Unreadable] = []
    crops: list[NDArray[np.uint8]] = []
    top: list[NDArray[np.int32]] = []
    scores: list[NDArray[np.float32]] | None = [] if has_scikit_learn() else None

    def classify() -> None:
        logits = network(normalized(np.stack(crops), preprocess))
        top.append(top_classes(logits))
        if scores is not None:
            scores.append(log_softmax(logits).astype(np.float32))
        advance(len(crops))
        crops.clear()

    for image, pixels in decode_ahead(images, [preprocess]):
        if isinstance(pixels, str):
            unreadable.append((image, pixels))
            advance(1)
            continue
        seen.append(image)
        crops.append(pixels[pixels_key(preprocess)])
        if len(crops) == size:
            classify()
    if not seen:
        raise nothing_readable(images, unreadable)
    if crops:
        classify()
    return Answers(
        images=tuple(seen),
        unreadable=tuple(unreadable),
        top=(np.concatenate(top),),
        kl=None,
        scores=None if scores is None else (np.concatenate(scores),),
    )


@contextlib.contextmanager
def _network(classifier: Classifier, batch_size: int, threads: int) -> Iterator[tuple[Network, int]]:
    """What computes the logits, and how many pictures it takes at a time."""
    if isinstance(classifier.source, Path):
        yield _network_from_onnx(classifier.source, threads)
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield _network_from_module(classifier.source), batch_size
    finally:
        torch.set_num_threads(before)


def _network_from_module(module: nn.Module) -> Network:
    import torch

    def network(floats: NDArray[np.float32]) -> NDArray[np.float32]:
        pictures = torch.from_numpy(floats).contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(pictures).numpy()
        return logits

    return network


def _network_from_onnx(path: Path, threads: int) -> tuple[Network, int]:
    from edgecls.runtime.engines.onnxruntime import import_onnxruntime, session_options

    ort = import_onnxruntime()
    session = ort.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    # One at a time where the file does not say: that it may be given more is often a promise that it does not keep.
    size = given.shape[0] if isinstance(given.shape[0], int) else 1

    def network(floats: NDArray[np.float32]) -> NDArray[np.float32]:
        padding = floats[-1:].repeat(size - len(floats), 0)
        try:
            logits = session.run(None, {given.name: np.concatenate([floats, padding])})[0]
        except Exception as error:  # ONNX Runtime has a class for each status, all of them bare Exceptions
            raise InputError(f"{path} fails on a picture: {error}. Export it again.") from error
        return np.asarray(logits[: len(floats)])

    return network, size
