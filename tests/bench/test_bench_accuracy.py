"""What answers amount to against a reference, class by class."""

from __future__ import annotations

import numpy as np
import pytest

from edgecls.bench.accuracy import Answers, summarise
from edgecls.bench.report import Accuracy
from edgecls.runtime.imageset import ImageFile
from edgecls.runtime.labels import Labels

LABELS = Labels(("ant", "bee", "cat", "dog"))


def summarised(truth: list[int], reference: list[int], candidate: list[int], *, paired: bool = True) -> Accuracy:
    images = tuple(
        ImageFile(path=f"{number}.png", sha256=f"{number:064x}", folder="x", label=label)
        for number, label in enumerate(truth)
    )
    top = tuple(np.array(answers, np.int32)[:, None] for answers in (reference, candidate))
    answers = Answers(images=images, unreadable=(), top=top, kl=None, scores=None)
    return summarise(answers, 1, 0 if paired else None, LABELS, "p.npz")


def test_each_class_is_paired_by_itself() -> None:
    truth = [0] * 10 + [1] * 10 + [2] * 10
    reference = [0] * 8 + [1] * 2 + [1] * 10 + [0] * 10
    candidate = [0] * 5 + [1] * 3 + [0] * 2 + [1] * 10 + [2] * 1 + [3] * 9
    accuracy = summarised(truth, reference, candidate)
    assert accuracy.per_class is not None
    assert [(item.label, item.n, item.b, item.c, item.drop_pp) for item in accuracy.per_class] == [
        ("ant", 10, 3, 2, 10.0),
        ("bee", 10, 0, 0, 0.0),
        ("cat", 10, 0, 1, -10.0),
        ("dog", 0, None, None, None),
    ]
    # 3 or more of 5 heads: 16 / 32.
    assert [item.drop_p for item in accuracy.per_class] == [pytest.approx(0.5), 1.0, 1.0, None]
    assert [item.drop_p_holm for item in accuracy.per_class] == [1.0, 1.0, 1.0, None]
    assert sum(item.b or 0 for item in accuracy.per_class) == accuracy.b
    assert sum(item.c or 0 for item in accuracy.per_class) == accuracy.c


def test_classes_that_lost_beyond_chance_are_told() -> None:
    truth = [0] * 20 + [1] * 20 + [2] * 20
    accuracy = summarised(truth, truth, [1] * 8 + [0] * 12 + [2] * 10 + [1] * 10 + [2] * 18 + [0] * 2)
    assert accuracy.warnings[-1] == (
        "the recall of classes dropped beyond chance against the reference: "
        "bee (+50.0 pp of 20 pictures), ant (+40.0 pp of 20 pictures)"
    )
    assert accuracy.per_class is not None
    assert [item.drop_p_holm for item in accuracy.per_class] == pytest.approx([2 / 2**8, 3 / 2**10, 1 / 4])
    unpaired = summarised(truth, truth, [1] * 60, paired=False)
    assert not any("beyond chance" in warning for warning in unpaired.warnings)
    assert unpaired.per_class is not None
    assert unpaired.per_class[0].drop_p is None
