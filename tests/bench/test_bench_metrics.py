from __future__ import annotations

import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgecls.bench.metrics import (
    ClassificationMetrics,
    classification_metrics,
    confusion_matrix,
    has_scikit_learn,
    top_classes,
)
from edgecls.bench.report import Accuracy
from edgecls.runtime.labels import Labels

metrics = pytest.importorskip("sklearn.metrics")


def labels_of(classes: int) -> Labels:
    return Labels(tuple(f"class {index}" for index in range(classes)))


def probabilities(rng: np.random.Generator, n: int, classes: int, truth: np.ndarray) -> np.ndarray:
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), truth] += 1
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def found(truth: np.ndarray, scores: np.ndarray) -> ClassificationMetrics:
    return classification_metrics(truth, top_classes(scores), scores, labels_of(scores.shape[1]))


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(12, 80))
@settings(max_examples=30)
def test_all_figures_are_those_of_scikit_learn(seed: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, n)]).astype(np.int32)[:n]
    scores = probabilities(rng, n, classes, truth)
    got, answers, every = found(truth, scores), scores.argmax(1), range(classes)
    assert got.top1 == pytest.approx(metrics.accuracy_score(truth, answers))
    for k, value in ((3, got.top3), (5, got.top5)):
        # With two classes scikit-learn wants one column; with k = classes it warns that the figure means nothing.
        if classes > k:
            assert value == pytest.approx(metrics.top_k_accuracy_score(truth, scores, k=k, labels=list(every)))
        else:
            assert value == (1.0 if classes == k else None)
    assert np.array_equal(got.confusion, metrics.confusion_matrix(truth, answers, labels=list(every)))
    assert got.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(truth, answers))
    assert got.macro_f1 == pytest.approx(metrics.f1_score(truth, answers, average="macro"))
    if classes > 2:
        expected = metrics.roc_auc_score(truth, scores / scores.sum(1, keepdims=True), multi_class="ovr")
        assert got.macro_auc == pytest.approx(expected, abs=1e-6)
    assert got.auc_classes == classes
    assert got.unavailable is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_all_figures_are_those_of_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("edgecls.models.torchvision_operators")  # torchmetrics imports torchvision where it finds it
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(seed)
    classes, n = 7, 60
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]).astype(np.int32)
    # Halves and quarters: scores with many ties.
    scores = (rng.integers(0, 9, (n, classes)) / 8).astype(np.float32)
    got = found(truth, scores)
    wanted, given_ = torch.from_numpy(truth).long(), torch.from_numpy(scores)
    answers = torch.from_numpy(top_classes(scores)[:, 0]).long()
    options = {"num_classes": classes, "average": "macro"}
    assert got.macro_auc == pytest.approx(float(classification.multiclass_auroc(given_, wanted, **options)), abs=1e-5)
    assert got.macro_f1 == pytest.approx(float(classification.multiclass_f1_score(answers, wanted, **options)))
    recall = float(classification.multiclass_recall(answers, wanted, **options))
    assert got.balanced_accuracy == pytest.approx(recall)
    matrix = classification.multiclass_confusion_matrix(answers, wanted, num_classes=classes)
    assert np.array_equal(got.confusion, matrix.numpy())


def test_classes_without_pictures_count_in_nothing_and_are_told() -> None:
    truth = np.array([1, 1, 3, 3], np.int32)
    scores = np.array(
        [[0, 0.9, 0.1, 0, 0], [0.6, 0.3, 0.1, 0, 0], [0, 0, 0, 1, 0], [0, 0.2, 0, 0.8, 0]], np.float32
    )  # fmt: skip
    got = found(truth, scores)
    assert got.balanced_accuracy == 0.75
    assert got.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert (got.macro_auc, got.auc_classes) == (1.0, 2)
    assert got.per_class is not None
    assert [(row.index, row.n, row.predicted, row.precision, row.recall) for row in got.per_class] == [
        (0, 0, 1, 0.0, None),
        (1, 2, 1, 1.0, 0.5),
        (3, 2, 2, 1.0, 1.0),
    ]
    assert (got.top1, got.top3, got.top5) == (0.75, 1.0, 1.0)


def test_never_nan() -> None:
    truth = np.array([0, 1, 1], np.int32)
    scores = np.array([[0.9, 0.1], [np.nan, 0], [0.2, 0.8]], np.float32)
    got = found(truth, scores)
    assert (got.top1, got.macro_auc, got.auc_classes) == (pytest.approx(2 / 3), None, None)
    assert got.confusion == ((1, 0), (0, 1))
    assert got.unavailable == "there is no AUC: not all scores are finite numbers"
    one = found(np.zeros(3, np.int32), np.eye(3, dtype=np.float32))
    assert (one.macro_auc, one.unavailable) == (None, "there is no AUC: all pictures are of one class")
    for record in (got, one):
        assert b"NaN" not in msgspec.json.encode(record)
        assert msgspec.json.decode(msgspec.json.encode(record), type=ClassificationMetrics) == record


def test_of_equals_the_lower_class_is_answered() -> None:
    assert top_classes(np.array([[1, 2, 2, 0], [0, 0, 0, 0]], np.float32)).tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    assert top_classes(np.array([[1, np.inf, 0]], np.float32)).tolist() == [[-1, -1, -1]]


def test_many_classes_keep_their_matrix_out_of_the_json() -> None:
    truth = np.arange(101, dtype=np.int32)
    got = found(truth, np.eye(101, dtype=np.float32))
    assert got.confusion is None
    assert got.macro_auc == 1.0
    assert np.array_equal(confusion_matrix(truth, truth, 101), np.eye(101))


def test_a_device_without_scikit_learn_counts_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 50).astype(np.int32)
    scores = probabilities(rng, 50, 6, truth)
    full = found(truth, scores)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not has_scikit_learn()
    bare = classification_metrics(truth, top_classes(scores), None, labels_of(6))
    assert (bare.top1, bare.top3, bare.top5, bare.confusion) == (full.top1, full.top3, full.top5, full.confusion)
    assert (bare.macro_f1, bare.balanced_accuracy, bare.macro_auc) == (None, None, None)
    assert bare.unavailable is not None
    assert "pip install 'edgecls[metrics]'" in bare.unavailable
    assert bare.per_class is not None
    assert full.per_class is not None
    assert [(row.n, row.correct, row.precision) for row in bare.per_class] == [
        (row.n, row.correct, None) for row in full.per_class
    ]


def test_accuracy_that_misleads_is_told() -> None:
    def warned(per_class: dict[int, tuple[int, int]]) -> str:
        """Class to pictures and how many of them are right; the others are taken for class 0 (or 1)."""
        truth = np.repeat(list(per_class), [n for n, _ in per_class.values()]).astype(np.int32)
        answers = np.concatenate(
            [np.repeat([index, int(index == 0)], [right, n - right]) for index, (n, right) in per_class.items()]
        )
        return "; ".join(found(truth, np.eye(3, dtype=np.float32)[answers]).warnings)

    assert warned({0: (50, 45), 1: (50, 45)}) == ""
    assert warned({0: (90, 88), 1: (10, 9)}) == ""
    constant = warned({0: (90, 90), 1: (10, 0)})
    assert "no better than to answer 'class 0' always: 90.00 %" in constant
    assert "classes have 10 to 90 pictures" in constant
    hidden = warned({0: (90, 90), 1: (10, 5)})
    assert hidden.startswith("top-1 of 95.00 % flatters")
    assert "balanced accuracy) is 75.00 %" in hidden


def test_older_reports_can_be_read() -> None:
    old = (
        '{"n": 2, "predictions": "p.npz", "top1": 0.5, "top5": null, "macro_f1": 0.5, "per_class": '
        '[{"index": 0, "label": "ant", "n": 2, "correct": 1, "predicted": 1}], "b": 1}'
    )
    read = msgspec.json.decode(old, type=Accuracy)
    assert (read.top1, read.top3, read.macro_auc, read.confusion, read.b) == (0.5, None, None, None, 1)
    assert read.per_class is not None
    assert read.per_class[0].f1 is None


@pytest.mark.parametrize("classes", [3, 25, 60])
def test_the_picture_of_a_matrix(classes: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from edgecls.bench.confusion_picture import draw_confusion

    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (classes, classes)) + 30 * np.eye(classes, dtype=np.int64)
    counts[0] = 0  # answered, and never a label
    names = ("cost $x^$ and more", "日本語", *(f"a rather long name of class {index}" for index in range(2, classes)))
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(counts, Labels(names), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        # Blues: the diagonal is far darker than the paper.
        assert np.asarray(picture.convert("L")).min() < 100
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
