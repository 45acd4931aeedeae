"""HOG and a support vector machine: the baseline for devices that are too small for a network.

Pictures are squashed to 64 × 64 pixels, made grey as Pillow does it, described by `skimage.feature.hog` and scaled. The
machine is scikit-learn's `SVC`, whose answers for pairs of classes are calibrated by a multinomial logistic regression
on decision values from cross-validation: Platt's scaling for many classes. So there is one answer, the argmax of the
probabilities, where libsvm's votes and its probabilities may name two classes. Its logits are linear in the decision
values, and jump nowhere.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.models.card import ModelCard
from edgecls.models.hog_onnx import CELL_PX, FEATURES, MODEL, ORIENTATIONS, SIDE_PX, SvmLogits, hog_svm_onnx
from edgecls.runtime.atomic_file import atomic_file, refuse_unwritable
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.errors import InputError, MissingExtraError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Progress

if TYPE_CHECKING:
    from sklearn.ensemble import StackingClassifier

Kernel = Literal["rbf", "linear"]

MAX_PICTURES = 10_000
"""Time and memory of training grow with the square of the number of pictures: so many need about 3 GB."""

MAX_DECISIONS = 250_000_000
"""Pictures times pairs of classes, for each of which the calibration holds a number: so many are 2 GB."""

PREPROCESS = Preprocess(
    mode="squash", resize_px=SIDE_PX, crop_px=SIDE_PX, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)
)
"""The graph takes pixels as they are, 0..255."""

_GRIDS: dict[Kernel, tuple[tuple[float, float | None], ...]] = {
    "rbf": tuple((c, factor / FEATURES) for c in (1.0, 10.0) for factor in (0.5, 1.0, 2.0)),
    "linear": ((1e-4, None), (1e-3, None), (1e-2, None)),
}
"""Pairs of C and gamma that cross-validation chooses from."""
_MIN_VARIANCE = 1e-4
"""A feature that hardly varies says little, and scaling would magnify the rounding of float32 in it."""

_MAX_LISTED = 5


class HogSvmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a training made."""

    path: Path
    kernel: Kernel
    cv_accuracy: float
    """Mean accuracy in cross-validation, 0..1, of the hyperparameters that were chosen by it."""
    c: float
    """Penalty of a training picture on the wrong side of the margin."""
    gamma: float | None
    """Of the RBF kernel exp(−gamma |x − y|²) on scaled features; None in a linear machine."""
    pictures: int
    support_vectors: int
    """The file of an RBF machine holds each of them, that of a linear one none."""
    size_bytes: int


def train_hog_svm(
    train: ImageSet,
    labels: Labels,
    *,
    output: Path,
    kernel: Kernel = "rbf",
    folds: int = 3,
    seed: int = 0,
    progress: Progress,
) -> HogSvmResult:
    """Trains on labelled pictures and writes an `.onnx` file that `open_classifier` needs no flags for.

    Args:
        train: With labels.
        labels: Of all classes; each must have pictures.
        output: Replaced when the new file is whole.
        kernel: `rbf` is more accurate; `linear` makes files of some 100 kB whatever the number of pictures.
        folds: Of the cross-validation that chooses hyperparameters and calibrates.
        seed: Of the folds. The same pictures and seed give the same file.

    Raises:
        InputError: There are more than 10,000 pictures (pass `--limit`) or too many classes, a class has fewer
            pictures than there are folds, those of a fold look the same, a picture cannot be read, or the output cannot
            be written or is not called `.onnx`.
        MissingExtraError: The extra `hog-svm` is not installed.
    """
    refuse_hog_svm(output)
    _refuse_pictures(train, labels, folds)
    with progress.stage("Describing the pictures", len(train)) as advance:
        features, broken = [], []
        for image in train.images:
            try:
                features.append(hog_features(PREPROCESS.pixels(train.root / image.path)))
            except InputError as error:
                broken.append(str(error))
            advance(1)
    if broken:
        listing = "\n".join(f"  {reason}" for reason in broken[:_MAX_LISTED])
        raise InputError(
            f"{len(broken)} of {len(train)} pictures of {train.root} cannot be read; nothing was trained. "
            f"Remove or replace them, beginning with:\n{listing}"
        )
    described = np.stack(features)
    if described.var(0).max() < 2 * _MIN_VARIANCE:
        raise InputError(f"all pictures of {train.root} look the same at {SIDE_PX} × {SIDE_PX} pixels: add others.")
    machine, cv_accuracy = fit_svm(
        described,
        np.asarray([image.label for image in train.images]),
        kernel=kernel,
        folds=folds,
        seed=seed,
        progress=progress,
    )
    model = hog_svm_onnx(logits_from_sklearn(machine, described))
    for key, value in ModelCard(model=MODEL, preprocess=PREPROCESS, labels=labels).metadata().items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString(deterministic=True)
    with atomic_file(output) as file:
        file.write(content)
    svc = machine.estimators_[0][-1]
    return HogSvmResult(
        path=output,
        kernel=kernel,
        cv_accuracy=cv_accuracy,
        c=svc.C,
        gamma=_gamma(svc),
        pictures=len(train),
        support_vectors=len(svc.support_),
        size_bytes=len(content),
    )


def refuse_hog_svm(output: Path) -> None:
    """Refuses what `train_hog_svm` could not do whatever the pictures are.

    Raises:
        InputError: The output cannot be written or is not called `.onnx`.
        MissingExtraError: The extra `hog-svm` is not installed.
    """
    if output.suffix.lower() != ".onnx":
        raise InputError(f"HOG and SVM are written as ONNX: call the output {output.with_suffix('.onnx').name}.")
    refuse_unwritable(output)
    try:
        import onnx  # noqa: F401
        import skimage.feature  # noqa: F401
        import sklearn.svm  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(MODEL, "Training HOG and SVM", f"{error.name} is not installed") from error


def hog_features(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The descriptor of one crop.

    Args:
        pixels: `uint8 [64, 64, 3]`, RGB.

    Returns:
        `float64 [1764]`.
    """
    from PIL import Image
    from skimage.feature import hog

    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    described: NDArray[np.float64] = hog(grey, ORIENTATIONS, (CELL_PX, CELL_PX), (2, 2), block_norm="L2-Hys")
    return described


def fit_svm(
    features: NDArray[np.float64],
    classes: NDArray[np.int64],
    *,
    kernel: Kernel,
    folds: int,
    seed: int,
    progress: Progress,
) -> tuple[StackingClassifier, float]:
    """Chooses hyperparameters by cross-validation, fits the machine to all pictures and calibrates it.

    Args:
        features: `[pictures, features]`
        classes: `[pictures]`, from 0, none missing.

    Returns:
        A scikit-learn classifier whose `predict` is the argmax of its `predict_proba`, and the mean accuracy of the
        best hyperparameters.

    Raises:
        InputError: The pictures without those of one fold look the same.
    """
    import joblib  # type: ignore[import-untyped]
    from sklearn.ensemble import StackingClassifier
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    if any(features[others].var(0).max() <= _MIN_VARIANCE for others, _ in splits.split(features, classes)):
        raise InputError(
            f"so many pictures look the same at {SIDE_PX} × {SIDE_PX} pixels that cross-validation in {folds} folds "
            "finds nothing to learn in a part of them: add others, or remove blank ones."
        )
    best, accuracy = None, -1.0
    # libsvm leaves the interpreter to others while it works: threads suffice, and share the features.
    with joblib.parallel_config("threading", n_jobs=cpu_count()):
        with progress.stage("Choosing hyperparameters", len(_GRIDS[kernel])) as advance:
            for c, gamma in _GRIDS[kernel]:
                # By name, libsvm would multiply vector by vector, and again for each pair of classes.
                function = linear_kernel if gamma is None else partial(rbf_kernel, gamma=gamma)
                svc = SVC(C=c, kernel=function, decision_function_shape="ovo")
                machine = make_pipeline(VarianceThreshold(_MIN_VARIANCE), StandardScaler(), svc)
                scores = cross_val_score(machine, features, classes, cv=splits, error_score="raise")
                score = float(scores.mean())
                if score > accuracy:
                    best, accuracy = machine, score
                advance(1)
        calibrated = StackingClassifier(
            [("svm", best)], LogisticRegression(C=0.1, max_iter=1000), cv=splits, stack_method="decision_function"
        )
        with progress.stage("Fitting and calibrating"):
            calibrated.fit(features, classes)
    return calibrated, accuracy


def logits_from_sklearn(machine: StackingClassifier, features: NDArray[np.float64]) -> SvmLogits:
    """What a machine of `fit_svm` computes, as one function from features to logits.

    Args:
        features: That it was fitted to.
    """
    selector, scaler, svc = (step for _, step in machine.estimators_[0].steps)
    vectors = machine.estimators_[0][:-1].transform(features[svc.support_])
    calibration = machine.final_estimator_
    to_logits, offsets = calibration.coef_, calibration.intercept_
    if len(offsets) == 1:  # Two classes have one logit, of the second.
        to_logits, offsets = np.stack([0 * to_logits[0], to_logits[0]]), np.append(0, offsets)
    weights, gamma = to_logits @ _pairwise(svc), _gamma(svc)
    # Back to all features, zero where one was left out.
    widened = selector.inverse_transform
    return SvmLogits(
        means=widened(scaler.mean_[None])[0],
        factors=widened(1 / scaler.scale_[None])[0],
        weights=widened(weights @ vectors) if gamma is None else weights,
        biases=to_logits @ svc.intercept_ + offsets,
        support_vectors=None if gamma is None else widened(vectors),
        gamma=gamma,
    )


def _gamma(svc: Any) -> float | None:
    """Of the RBF kernel that `fit_svm` gave a machine; None where it gave the linear one."""
    return getattr(svc.kernel, "keywords", {}).get("gamma")


def _pairwise(svc: Any) -> NDArray[np.float64]:
    """The coefficients of an SVC's decisions between two classes each, `[pairs, support vectors]`."""
    coefficients: NDArray[np.float64] = svc.dual_coef_
    if len(svc.classes_) == 2:
        return coefficients
    # Row k of `dual_coef_` holds, for each support vector, its coefficient against the k-th of the other classes.
    owner = np.repeat(np.arange(len(svc.classes_)), svc.n_support_)
    return np.stack(
        [
            np.where(owner == first, coefficients[second - 1], 0) + np.where(owner == second, coefficients[first], 0)
            for first, second in combinations(range(len(svc.classes_)), 2)
        ]
    )


def _refuse_pictures(train: ImageSet, labels: Labels, folds: int) -> None:
    """Everything that can be refused before the first picture is decoded."""
    if folds < 2:
        raise InputError(f"cross-validation in {folds} folds is impossible: give 2 or more.")
    if len(labels) < 2:
        raise InputError(f"there is one class, {labels.names[0]!r}: a classifier needs two or more.")
    if len(train) > MAX_PICTURES:
        raise InputError(
            f"{train.root} holds {len(train)} pictures; training an SVM takes time and memory with the square of their "
            f"number, so at most {MAX_PICTURES} are taken: pass --limit {MAX_PICTURES}, or train a network."
        )
    pairs = len(labels) * (len(labels) - 1) // 2
    if len(train) * pairs > MAX_DECISIONS:
        limit = MAX_DECISIONS // pairs
        raise InputError(
            f"{len(train)} pictures of {len(labels)} classes make {pairs} decisions between two classes for each "
            f"picture, {len(train) * pairs * 8 / 1e9:.0f} GB: "
            + (f"pass --limit {limit}, " if limit >= folds * len(labels) else "leave classes out, ")
            + "or train a network."
        )
    counts = Counter(image.label for image in train.images)
    if None in counts:
        raise InputError(f"{train.root} has pictures without a class: put each into a folder named by its class.")
    if few := [f"{name!r} ({counts[index]})" for index, name in enumerate(labels.names) if counts[index] < folds]:
        more = f" and {len(few) - _MAX_LISTED} more" if len(few) > _MAX_LISTED else ""
        raise InputError(
            f"cross-validation in {folds} folds needs {folds} pictures of each class; there are fewer of "
            f"{', '.join(few[:_MAX_LISTED])}{more}: add pictures or remove the class."
        )
