"""One pass over the pictures for all bundles, and what their answers amount to."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.metrics import (
    MAX_CONFUSION_CLASSES,
    classification_metrics,
    confusion_matrix,
    has_scikit_learn,
    top_classes,
)
from edgecls.bench.report import Accuracy, ClassAccuracy
from edgecls.bench.softmax import divergence, log_softmax
from edgecls.bench.statistics import confidence_interval, holm, mcnemar_exact_p, mcnemar_mid_p, upper_bound
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageFile, ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Advance
from edgecls.runtime.session import Session

_LOST_P = 0.05
"""Adjusted p value below which a class has lost beyond chance: of reports without any loss so many warn."""
_SETTLED_AT_ONCE = 256
"""Pictures whose logits are kept until then."""
_SHOWN = 5
"""Classes that a warning names."""

Unreadable = tuple[ImageFile, str]
"""A picture, and why it cannot be read."""


@dataclass(frozen=True)
class Answers:
    """What every run said of every picture that could be read.

    Attributes:
        images: The pictures, in the order of the image set.
        unreadable: The others, each with the reason.
        top: One array a run, `int32 [images, min(5, classes)]`, best class first; -1 where the logits were not finite.
        kl: One array a run, `float64 [images]`, nats: divergence of the softmax from the reference's; NaN where
            either was not finite. None without a reference.
        scores: One array a run, `float32 [images, classes]`, logarithms of the probabilities; NaN where the logits
            were not finite. None without labels, or without scikit-learn, which alone wants them.
    """

    images: tuple[ImageFile, ...]
    unreadable: tuple[Unreadable, ...]
    top: tuple[NDArray[np.int32], ...]
    kl: tuple[NDArray[np.float64], ...] | None
    scores: tuple[NDArray[np.float32], ...] | None

    @property
    def labels(self) -> NDArray[np.int32] | None:
        """Class of every picture, `int32 [images]`; None for a set without labels."""
        if any(image.label is None for image in self.images):
            return None
        return np.array([image.label for image in self.images], dtype=np.int32)

    def not_finite(self, run: int) -> int:
        """Pictures for which a run's logits held NaN or infinity."""
        return int(np.count_nonzero(self.top[run][:, 0] < 0))

    def write(self, path: Path, classes: int) -> None:
        """As `save`, to a file that is complete or is not there."""
        with atomic_file(path) as file:
            self.save(file, classes)

    def save(self, file: IO[bytes], classes: int) -> None:
        """Saves the answers as `.npz`.

        It holds `path`, `sha256`, `label` (-1: none), and for each run `runN_top` and `runN_kl`; for more than 100
        classes with labels also `runN_confusion`, `int32 [classes, classes]`: label, answer.

        Args:
            file: Open for writing.
            classes: How many there are.
        """
        arrays: dict[str, NDArray[np.generic]] = {
            "path": np.array([image.path for image in self.images], dtype=np.str_),
            "sha256": np.array([image.sha256 for image in self.images], dtype=np.str_),
            "label": np.array([-1 if image.label is None else image.label for image in self.images], dtype=np.int32),
        }
        arrays |= {f"run{run}_top": top for run, top in enumerate(self.top)}
        arrays |= {f"run{run}_kl": kl for run, kl in enumerate(self.kl or ())}
        truth = self.labels
        if truth is not None and classes > MAX_CONFUSION_CLASSES:
            arrays |= {
                f"run{run}_confusion": confusion_matrix(truth, top[:, 0], classes).astype(np.int32)
                for run, top in enumerate(self.top)
            }
        np.savez(file, allow_pickle=False, **arrays)


def classify_images(
    sessions: Sequence[Session], images: ImageSet, reference: int | None, advance: Advance = lambda steps: None
) -> Answers:
    """Gives every picture to every session, one at a time as a device does, while the next ones are decoded.

    Memory does not grow with the number of pictures but for the answers themselves: with labels and scikit-learn, 4
    bytes for each picture, class and run.

    Args:
        sessions: The runs.
        images: The pictures.
        reference: Index of the run that the others are compared with.
        advance: Called after every picture.

    Raises:
        InputError: Not one picture can be read: give others.
    """
    seen: list[ImageFile] = []
    unreadable: list[Unreadable] = []
    labelled = all(image.label is not None for image in images.images)
    tally = _Tally(len(sessions), len(images), reference, scored=labelled and has_scikit_learn())
    keys = [pixels_key(session.preprocess) for session in sessions]
    for image, pixels in decode_ahead(images, [session.preprocess for session in sessions]):
        if isinstance(pixels, str):
            unreadable.append((image, pixels))
        else:
            tally.add([session.logits(pixels[key])[0] for session, key in zip(sessions, keys, strict=True)])
            seen.append(image)
        advance(1)
    if not seen:
        raise nothing_readable(images, unreadable)
    top, kl, scores = tally.total()
    return Answers(images=tuple(seen), unreadable=tuple(unreadable), top=top, kl=kl, scores=scores)


class _Tally:
    """What is kept of the logits, worked out for many pictures at a time: NumPy takes as long for one.

    Args:
        runs: How many.
        pictures: At most.
        reference: Index of the run that the others are compared with.
        scored: Whether probabilities are kept.
    """

    def __init__(self, runs: int, pictures: int, reference: int | None, *, scored: bool) -> None:
        self._reference, self._scored, self._pictures = reference, scored, pictures
        self._waiting: list[list[NDArray[np.float32]]] = [[] for _ in range(runs)]
        self._top: list[list[NDArray[np.int32]]] = [[] for _ in range(runs)]
        self._kl: list[list[NDArray[np.float64]]] = [[] for _ in range(runs)]
        self._scores: list[NDArray[np.float32]] = []
        self._settled = 0

    def add(self, logits: Sequence[NDArray[np.float32]]) -> None:
        """Takes every run's logits for one picture, `float32 [classes]`."""
        for run, values in zip(self._waiting, logits, strict=True):
            run.append(values)
        if len(self._waiting[0]) == _SETTLED_AT_ONCE:
            self._settle()

    def total(
        self,
    ) -> tuple[
        tuple[NDArray[np.int32], ...], tuple[NDArray[np.float64], ...] | None, tuple[NDArray[np.float32], ...] | None
    ]:
        """`Answers.top`, `Answers.kl` and `Answers.scores`."""
        if self._waiting[0]:
            self._settle()
        return (
            tuple(np.concatenate(parts) for parts in self._top),
            None if self._reference is None else tuple(np.concatenate(parts) for parts in self._kl),
            tuple(rows[: self._settled] for rows in self._scores) if self._scored else None,
        )

    def _settle(self) -> None:
        runs = [np.stack(values) for values in self._waiting]
        end = self._settled + len(runs[0])
        if self._scored and not self._scores:
            self._scores = [np.empty((self._pictures, logits.shape[1]), np.float32) for logits in runs]
        for run, logits in enumerate(runs):
            self._top[run].append(top_classes(logits))
            if self._scored:
                self._scores[run][self._settled : end] = log_softmax(logits)
            if self._reference is not None:
                self._kl[run].append(divergence(runs[self._reference], logits))
            self._waiting[run].clear()
        self._settled = end


def nothing_readable(images: ImageSet, unreadable: Sequence[Unreadable]) -> InputError:
    """The error of a measurement without a single picture that can be read."""
    image, why = unreadable[0]
    return InputError(
        f"none of the {len(images)} pictures in {images.root} can be read (the first, {image.path}: {why}): "
        "give `--data` other pictures"
    )


PixelsKey = tuple[object, ...]


def pixels_key(preprocess: Preprocess) -> PixelsKey:
    """Equal for two preprocessings that give the same pixels: normalisation and colour order are the graph's."""
    same = msgspec.structs.replace(preprocess, mean=(0, 0, 0), std=(1, 1, 1), colour="rgb")
    return msgspec.structs.astuple(same)


def decode_ahead(
    images: ImageSet, preprocesses: Sequence[Preprocess]
) -> Iterator[tuple[ImageFile, Mapping[PixelsKey, NDArray[np.uint8]] | str]]:
    """Decodes a bounded number of pictures ahead in threads (Pillow releases the lock), keeping their order."""
    distinct = {pixels_key(preprocess): preprocess for preprocess in preprocesses}
    workers = min(8, cpu_count())
    pending: deque[tuple[ImageFile, Future[Mapping[PixelsKey, NDArray[np.uint8]] | str]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="edgecls-decode") as pool:
        try:
            for image in images.images:
                pending.append((image, pool.submit(_read_pixels, images.root, image, distinct)))
                if len(pending) > 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _read_pixels(
    root: Path, image: ImageFile, distinct: Mapping[PixelsKey, Preprocess]
) -> Mapping[PixelsKey, NDArray[np.uint8]] | str:
    """The crop that each preprocessing makes of a picture, or why there is none."""
    try:
        content = (root / image.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != image.sha256:
            return "it was changed while the measurement ran"
        return {key: preprocess.pixels(content) for key, preprocess in distinct.items()}
    except OSError as error:
        return error.strerror or str(error)
    except InputError as error:
        return str(error)


def summarise(answers: Answers, run: int, reference: int | None, labels: Labels, predictions: str) -> Accuracy:
    """The accuracy record of one run.

    Args:
        answers: Of all runs.
        run: Index of the run.
        reference: Index of the run that it is paired with.
        labels: The classes.
        predictions: Name of the file that `Answers.write` wrote.
    """
    n = len(answers.images)
    truth, predicted = answers.labels, answers.top[run][:, 0]
    fields: dict[str, Any] = {"n": n}
    if truth is not None:
        scores = None if answers.scores is None else answers.scores[run]
        metrics = classification_metrics(truth, answers.top[run], scores, labels)
        fields |= msgspec.structs.asdict(metrics)
        fields["per_class"] = tuple(ClassAccuracy(**msgspec.structs.asdict(item)) for item in metrics.per_class or ())
    if reference is not None:
        reference_predicted = answers.top[reference][:, 0]
        fields["top1_disagreement"] = float(np.mean(predicted != reference_predicted))
        if answers.kl is not None and np.isfinite(answers.kl[run]).all():
            fields |= {"kl_mean": float(answers.kl[run].mean()), "kl_p99": float(np.quantile(answers.kl[run], 0.99))}
        if truth is not None:
            right, reference_right = predicted == truth, reference_predicted == truth
            b, c = int(np.sum(reference_right & ~right)), int(np.sum(right & ~reference_right))
            fields |= _paired(b, c, n, exact=run == reference)
            classes = _paired_classes(fields["per_class"], truth, reference_right, right)
            fields |= {"per_class": classes, "warnings": (*fields["warnings"], *_lost_classes(classes))}
    return Accuracy(predictions=predictions, **fields)


def _paired(b: int, c: int, n: int, *, exact: bool) -> dict[str, Any]:
    """The fields of the drop; `exact` where a model is paired with itself and there is nothing to estimate."""
    low, high = (0.0, 0.0) if exact else confidence_interval(b, c, n)
    return {
        "b": b,
        "c": c,
        "drop_pp": 100 * (b - c) / n,
        "ci95_pp": (100 * low, 100 * high),
        "upper95_one_sided_pp": 0.0 if exact else 100 * upper_bound(b, c, n, 0.05),
        "mcnemar_mid_p": mcnemar_mid_p(b, c),
        "flip_rate": (b + c) / n,
    }


def _paired_classes(
    classes: Sequence[ClassAccuracy],
    truth: NDArray[np.int32],
    reference_right: NDArray[np.bool_],
    right: NDArray[np.bool_],
) -> tuple[ClassAccuracy, ...]:
    """The classes with what the run lost and won against the reference."""
    size = max(item.index for item in classes) + 1
    lost = np.bincount(truth[reference_right & ~right], minlength=size).tolist()
    won = np.bincount(truth[right & ~reference_right], minlength=size).tolist()
    tested = [item for item in classes if item.n]
    p_values = [mcnemar_exact_p(lost[item.index], won[item.index]) for item in tested]
    paired = {
        item.index: {"drop_pp": 100 * (lost[item.index] - won[item.index]) / item.n, "drop_p": p, "drop_p_holm": p_holm}
        for item, p, p_holm in zip(tested, p_values, holm(p_values).tolist(), strict=True)
    }
    return tuple(
        msgspec.structs.replace(item, b=lost[item.index], c=won[item.index], **paired[item.index]) if item.n else item
        for item in classes
    )


def _lost_classes(classes: Sequence[ClassAccuracy]) -> list[str]:
    """A warning where classes lost beyond chance, the largest losses first."""
    lost = [item for item in classes if item.drop_p_holm is not None and item.drop_p_holm < _LOST_P]
    if not lost:
        return []
    lost.sort(key=lambda item: -(item.drop_pp or 0))
    shown = [f"{item.label} ({item.drop_pp:+.1f} pp of {item.n} pictures)" for item in lost[:_SHOWN]]
    more = [f"{len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
    return [f"the recall of classes dropped beyond chance against the reference: {', '.join(shown + more)}"]
