"""What a classifier's answers are worth against the labels: what is more than counting, scikit-learn computes."""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.labels import Labels

TOP = 5
"""Answers that are kept of every picture, best first."""

MAX_CONFUSION_CLASSES = 100
"""Up to so many classes the confusion matrix stands in the JSON."""

_FLATTERED_PP = 5.0
"""Top-1 this far above the balanced accuracy hides what rare classes suffer."""


class ClassMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One class."""

    index: int
    label: str
    n: int
    """Pictures of the class."""
    correct: int
    """Those that were given the class."""
    predicted: int
    """Pictures of any class that were given the class."""
    precision: float | None = None
    """`correct` / `predicted`; null where that is 0 / 0."""
    recall: float | None = None
    """`correct` / `n`; null where that is 0 / 0."""
    f1: float | None = None


class ClassificationMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Answers against the labels; without labels all but `n` is null.

    scikit-learn computes precision, recall, F1, balanced accuracy and AUC; on a device that has none they are null.
    """

    n: int
    """Pictures that were classified."""
    top1: float | None = None
    top3: float | None = None
    """Null for fewer than 3 classes."""
    top5: float | None = None
    """Null for fewer than 5 classes."""
    macro_f1: float | None = None
    """Mean F1 over the classes that have pictures in the data set."""
    balanced_accuracy: float | None = None
    """Mean recall over the classes that have pictures in the data set."""
    macro_auc: float | None = None
    """Area under the ROC curve of the probability, one class against the rest, mean over `auc_classes` classes."""
    auc_classes: int | None = None
    """Classes that have pictures in the data set, as have others: only these have an AUC."""
    per_class: tuple[ClassMetrics, ...] | None = None
    """Classes that occur, as label or as answer."""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Pictures, a row for each label and a column for each answer; null for more than 100 classes, where it stands in
    the file of the predictions. Answers that were not finite are in no column."""
    unavailable: str | None = None
    """Why figures are null that the labels would allow."""
    warnings: tuple[str, ...] = ()
    """Why top-1 alone would mislead: it is no better than always answering the most frequent class, 5 points and
    more above the balanced accuracy, or classes dropped beyond chance against a reference."""


def has_scikit_learn() -> bool:
    """Whether scores are worth keeping for `classification_metrics`; imports nothing."""
    return importlib.util.find_spec("sklearn") is not None


def top_classes(logits: NDArray[np.float32]) -> NDArray[np.int32]:
    """The best classes of each picture, best first; of equals the lower index.

    Args:
        logits: `float32 [images, classes]`.

    Returns:
        `int32 [images, min(5, classes)]`; -1 where the logits are not finite.
    """
    top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    top[~np.isfinite(logits).all(axis=1)] = -1
    return top


def confusion_matrix(
    truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Pictures by label (row) and answer (column), `int64 [classes, classes]`; an answer of -1 is in no column."""
    answered = predicted >= 0
    cells = np.ravel_multi_index((truth[answered], predicted[answered]), (classes, classes))
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64, copy=False)


def classification_metrics(
    truth: NDArray[np.int32], top: NDArray[np.int32], scores: NDArray[np.float32] | None, labels: Labels
) -> ClassificationMetrics:
    """All figures of one classifier.

    Args:
        truth: The labels, `int32 [images]`.
        top: As `top_classes` gives it.
        scores: `float32 [images, classes]`, probabilities or what grows with them (their logarithms keep apart what
            rounds to 1); None where `has_scikit_learn` is not true.
        labels: The classes.
    """
    classes = len(labels)
    hits = top == truth[:, None]
    n = np.bincount(truth, minlength=classes)
    correct = np.bincount(truth[hits[:, 0]], minlength=classes)
    predicted = np.bincount(top[top[:, 0] >= 0, 0], minlength=classes)
    occurring = np.flatnonzero((n > 0) | (predicted > 0))
    try:
        figures, rates = _by_scikit_learn(truth, top[:, 0], scores, occurring)
    except ImportError as error:
        figures, rates = {"unavailable": _not_installed(error)}, [{}] * len(occurring)
    top1 = float(np.mean(hits[:, 0]))
    return ClassificationMetrics(
        n=len(truth),
        top1=top1,
        top3=float(np.mean(hits[:, :3].any(axis=1))) if classes >= 3 else None,
        top5=float(np.mean(hits.any(axis=1))) if classes >= TOP else None,
        per_class=tuple(
            ClassMetrics(
                index=index,
                label=labels.names[index],
                n=int(n[index]),
                correct=int(correct[index]),
                predicted=int(predicted[index]),
                **rate,
            )
            for index, rate in zip(map(int, occurring), rates, strict=True)
        ),
        confusion=tuple(map(tuple, confusion_matrix(truth, top[:, 0], classes).tolist()))
        if classes <= MAX_CONFUSION_CLASSES
        else None,
        warnings=tuple(_warnings(top1, figures.get("balanced_accuracy"), n, labels)),
        **figures,
    )


def _by_scikit_learn(
    truth: NDArray[np.int32],
    predicted: NDArray[np.int32],
    scores: NDArray[np.float32] | None,
    occurring: NDArray[np.int64],
) -> tuple[dict[str, Any], list[dict[str, float | None]]]:
    """Fields of the whole, and of each class that occurs."""
    from sklearn import metrics

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, labels=occurring, zero_division=np.nan
    )
    present = occurring[support > 0]
    figures: dict[str, Any] = {
        "macro_f1": float(metrics.f1_score(truth, predicted, labels=present, average="macro")),
        # What `balanced_accuracy_score` is, which warns about answers that are no label.
        "balanced_accuracy": float(metrics.recall_score(truth, predicted, labels=present, average="macro")),
    }
    if len(present) < 2:
        figures["unavailable"] = "there is no AUC: all pictures are of one class"
    elif scores is None or not np.isfinite(scores).all():
        figures["unavailable"] = "there is no AUC: not all scores are finite numbers"
    else:
        areas = [metrics.roc_auc_score(truth == index, scores[:, index]) for index in present]
        figures |= {"macro_auc": float(np.mean(areas)), "auc_classes": len(areas)}
    rates = [
        {"precision": _number(p), "recall": _number(r), "f1": _number(f)}
        for p, r, f in zip(precision, recall, f1, strict=True)
    ]
    return figures, rates


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _not_installed(error: ImportError) -> str:
    return (
        "precision, recall, F1, balanced accuracy and AUC need scikit-learn, which cannot be imported here "
        f"({error}): pip install 'edgecls[metrics]'"
    )


def _warnings(top1: float, balanced: float | None, n: NDArray[np.int64], labels: Labels) -> list[str]:
    """The two rules of `ClassificationMetrics.warnings`."""
    present = n[n > 0]
    majority, share = int(n.argmax()), float(n.max() / n.sum())
    warnings = []
    if len(present) > 1 and top1 <= share:
        warnings.append(
            f"top-1 of {100 * top1:.2f} % is no better than to answer {labels.names[majority]!r} always: "
            f"{100 * share:.2f} % of the pictures are of that class"
        )
    if balanced is not None and 100 * (top1 - balanced) >= _FLATTERED_PP:
        warnings.append(
            f"top-1 of {100 * top1:.2f} % flatters: classes have {present.min()} to {present.max()} pictures, and the "
            f"mean over classes (balanced accuracy) is {100 * balanced:.2f} %"
        )
    return warnings
