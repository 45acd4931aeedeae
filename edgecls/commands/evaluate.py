"""`edgecls evaluate`: what a trained classifier is worth, before it is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecls.console import Console, quoted, table_text
from edgecls.options import PREPROCESS_FIELDS, model_options, output_option, output_options, threads_option
from edgecls.parameter_types import INPUT_FOLDER, output_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgecls.bench.metrics import ClassificationMetrics, ClassMetrics
    from edgecls.models import Classifier
    from edgecls.runtime import Labels

_WORST = 10
_ELSEWHERE = ("checkpoint", "labels", "classes", "templates", *PREPROCESS_FIELDS)
"""Options that an export needs as well."""


@click.command("evaluate", short_help="Accuracy of a checkpoint.")
@model_options
@click.option("--data", type=INPUT_FOLDER, metavar="DIR", required=True, help="Pictures, in a sub-folder a class.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many pictures, spread over classes.")
@threads_option
@output_option("All figures as JSON; FILE.predictions.npz beside it has every answer.")
@click.option("--confusion", type=output_file, metavar="FILE.png", help="Draw the confusion matrix.")
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    console: Console,
    open_model: Callable[[], Classifier],
    data: Path,
    limit: int | None,
    threads: int | None,
    output: Path | None,
    confusion: Path | None,
) -> int:
    """Measures the accuracy of MODEL itself, in floating point, on the pixels that devices will see.

    MODEL is what `edgecls export` takes. The exit code is 4 if pictures could not be read; they are listed.
    """
    from edgecls.extra import needs_extra

    if confusion is not None:
        with needs_extra("metrics", "Drawing the confusion matrix"):
            import matplotlib  # noqa: F401 (before the work that would be lost)
    from edgecls.bench.metrics import confusion_matrix
    from edgecls.models.evaluate import evaluate, labelled_images, write_evaluation
    from edgecls.runtime.atomic_file import refuse_unwritable

    for path in filter(None, (output, confusion)):
        refuse_unwritable(path)
    with console.work() as progress:
        classifier = open_model()
        images = labelled_images(data, classifier.labels, limit)
        evaluation, answers = evaluate(classifier, images, threads=threads, progress=progress)
        truth = answers.labels
        assert truth is not None
        predicted = answers.top[0][:, 0]
        if output is not None:
            write_evaluation(evaluation, answers, output)
        if confusion is not None:
            from edgecls.bench.confusion_picture import draw_confusion

            draw_confusion(confusion_matrix(truth, predicted, len(classifier.labels)), classifier.labels, confusion)
    metrics = evaluation.metrics
    lines = [_headline(metrics), "", _worst_classes(metrics, truth, predicted, classifier.labels), ""]
    lines += [f"{what}: {path}" for what, path in (("evaluation", output), ("confusion", confusion)) if path]
    if not evaluation.valid:
        lines += ["NOT VALID:", *(f"  {reason}" for reason in evaluation.reasons)]
    lines += [f"warning: {warning}" for warning in metrics.warnings]
    if metrics.unavailable and not console.quiet:
        lines.append(f"note: {metrics.unavailable}")
    console.result(evaluation, "\n".join(lines).rstrip())
    options = " ..." if any(context.params[name] not in (None, ()) for name in _ELSEWHERE) else ""
    precision = "" if classifier.float32_only else " --int8 --calibration DIR"
    console.next(f"edgecls export {quoted(Path(classifier.model))}{options} --target onnxruntime{precision}")
    return 0 if evaluation.valid else 4


def _headline(metrics: ClassificationMetrics) -> str:
    from edgecls.report_table import percent_text

    figures = {
        "pictures": str(metrics.n),
        "top-1": percent_text(metrics.top1),
        "top-3": percent_text(metrics.top3),
        "top-5": percent_text(metrics.top5),
        "balanced": percent_text(metrics.balanced_accuracy),
        "macro F1": _rate(metrics.macro_f1),
        "macro AUC": _rate(metrics.macro_auc),
    }
    return table_text(list(figures), [list(figures.values())])


def _worst_classes(
    metrics: ClassificationMetrics, truth: NDArray[np.int32], predicted: NDArray[np.int32], labels: Labels
) -> str:
    """The classes of lowest F1 (recall, where there is none) that have pictures, and what they are taken for."""

    def worth(entry: ClassMetrics) -> float:
        return entry.correct / entry.n if entry.f1 is None else entry.f1

    present = sorted((entry for entry in metrics.per_class or () if entry.n), key=worth)
    title = "worst classes" if len(present) > _WORST else "class"
    rows = []
    for entry in present[:_WORST]:
        wrong = Counter(predicted[(truth == entry.index) & (predicted != entry.index) & (predicted >= 0)].tolist())
        # Of equals the first class.
        index, times = min(wrong.items(), key=lambda item: (-item[1], item[0]), default=(-1, 0))
        taken_for = f"{labels.names[index]} ({times})" if times else "-"
        rates = [_rate(entry.precision), _rate(entry.recall), _rate(entry.f1)]
        rows.append([entry.label, str(entry.n), str(entry.correct), *rates, taken_for])
    return table_text([title, "pictures", "right", "precision", "recall", "F1", "mostly taken for"], rows)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
