"""`edgecls diagnose`: where a bundle lost what its reference had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecls.console import Console, quoted, table_text
from edgecls.options import output_options, threads_option
from edgecls.parameter_types import INPUT_FILE, INPUT_FOLDER

if TYPE_CHECKING:
    from edgecls.export.diagnosis import Diagnosis, Stage
    from edgecls.export.layer_noise import LayerNoise

_UNKNOWN = "-"


@click.command("diagnose", short_help="What made a bundle worse than its reference.")
@click.argument("bundle", type=INPUT_FILE)
@click.option(
    "--reference", type=INPUT_FILE, metavar="BUNDLE", required=True, help="What is right: fp32, for onnxruntime best."
)
@click.option("--data", type=INPUT_FOLDER, metavar="DIR", required=True, help="Pictures, in a sub-folder a class.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=256,
    show_default=True,
    help="At most so many pictures, spread over classes.",
)
@threads_option
@output_options
def command(console: Console, bundle: Path, reference: Path, data: Path, limit: int, threads: int | None) -> int:
    """Attributes what BUNDLE lost to preprocessing, export, quantization (and which layers) or engine.

    Stage by stage, one more thing is as in BUNDLE, and the answers are compared with those of the reference.
    """
    from edgecls.extra import needs_extra

    with needs_extra("export", "Diagnosing"):
        from edgecls.export.diagnose import diagnose

    with console.work() as progress:
        diagnosis = diagnose(bundle, reference, data, limit=limit, threads=threads, progress=progress)
    console.result(diagnosis, "\n".join(_lines(diagnosis)))
    if not diagnosis.causes:
        console.next(f"edgecls bench {quoted(bundle)} --reference {quoted(reference)} --data {quoted(data)}")
    return 0


def _lines(diagnosis: Diagnosis) -> list[str]:
    head = ("with the candidate's", "KL", "other answers", "top-1")
    rows = [_row(stage) for stage in diagnosis.stages]
    start = ("nothing (the reference)", "0", "0.0 %", _percent(diagnosis.reference_top1))
    lines = [f"{diagnosis.n} pictures", "", table_text(head, [start, *rows]), ""]
    lines += [f"  {stage.name}: {stage.note}" for stage in diagnosis.stages]
    if diagnosis.golden is not None:
        result = "passed" if diagnosis.golden.passed else "FAILED (edgecls verify shows them)"
        lines.append(f"  golden samples: {result}")
    if diagnosis.drop_pp is not None and diagnosis.drop_ci95_pp is not None:
        low, high = diagnosis.drop_ci95_pp
        lines.append(f"  drop of top-1: {diagnosis.drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}]")
    if diagnosis.layers:
        columns = ("layer", "SQNR in, dB", "out", "lost, dB", "kept", "seen")
        lines += ["", table_text(columns, [_layer_row(layer) for layer in diagnosis.layers])]
    return [*lines, "", diagnosis.verdict]


def _row(stage: Stage) -> tuple[str, ...]:
    if not stage.ran:
        return (f"+ {stage.name}", "not run", _UNKNOWN, _UNKNOWN)
    kl = "not finite" if stage.kl_mean is None else f"{stage.kl_mean:.3g}"
    return (f"+ {stage.name}", kl, _percent(stage.disagreement), _percent(stage.top1))


def _layer_row(layer: LayerNoise) -> tuple[str, ...]:
    sides = [_UNKNOWN if value is None else f"{value:.1f}" for value in (layer.sqnr_in_db, layer.sqnr_out_db)]
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in (layer.kept, layer.seen)]
    return (layer.name, *sides, f"{layer.lost_db:.1f}", *ranges)


def _percent(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{100 * rate:.1f} %"
