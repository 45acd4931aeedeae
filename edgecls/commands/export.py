"""`edgecls export`: checkpoint to bundle."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from edgecls.console import Console, quoted, size_text
from edgecls.options import (
    isa_option,
    model_options,
    on_command_line,
    output_option,
    output_options,
    quantization_options,
    seed_option,
    threads_option,
)
from edgecls.parameter_types import INPUT_FILE, INPUT_FOLDER, OneOf, margin

if TYPE_CHECKING:
    from edgecls.bench.gate_result import Margin
    from edgecls.export.job import ExportResult
    from edgecls.export.recover import Budget
    from edgecls.models import Classifier

Precision = Literal["fp32", "fp16", "int8"]

_QUANTIZATION = ("quantizer", "ranges", "weights", "without")
"""Options that are fields of `Quantization`."""
_INT8 = {"plan", "sensitivity", "calibration_size", "max_drop", "evaluation", *_QUANTIZATION}
"""Options that mean nothing to a float export."""


def _targets() -> tuple[str, ...]:
    from edgecls.runtime.engines import engine_names

    return engine_names()


def _boards() -> tuple[str, ...]:
    from edgecls.runtime.jetson import TENSORRT

    return tuple(TENSORRT)


def _numbers(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """`8.6,12.0`."""
    parts = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if not parts or not all(re.fullmatch(r"\d+\.\d", part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of compute capabilities such as 8.6,12.0.")
    return parts


@click.command("export", short_help="Checkpoint to bundle.")
@model_options
@click.option("--target", type=OneOf(_targets), required=True, help="Engine that will run it.")
@click.option("--fp32", is_flag=True, help="32-bit floats: the default, and what undoes the configuration file.")
@click.option("--fp16", is_flag=True, help="16-bit float weights.")
@click.option("--int8", is_flag=True, help="8-bit integers; needs --calibration or --plan.")
@click.option("--calibration", type=INPUT_FOLDER, metavar="DIR", help="Pictures as the classifier will see them.")
@click.option("--plan", type=INPUT_FILE, metavar="FILE", help="A quantization plan to use instead of calibrating.")
@quantization_options
@click.option(
    "--max-drop",
    type=margin,
    metavar="Xpp",
    help="Keep blocks in float until INT8 is shown to cost less; needs --eval.",
)
@click.option("--eval", "evaluation", type=INPUT_FOLDER, metavar="DIR", help="Class folders that judge --max-drop.")
@click.option("--sensitivity", is_flag=True, help="Measure what each block loses by INT8; see `edgecls inspect`.")
@isa_option
@click.option("--device", type=OneOf(_boards), help="Board that it is made for: chooses --tensorrt-version.")
@click.option(
    "--tensorrt-version", metavar="X.Y", help="TensorRT of the device, for --target tensorrt. [default: 10.3]"
)
@click.option(
    "--compute-capabilities",
    type=_numbers,
    metavar="X.Y,...",
    help="GPUs to build for, with --target tensorrt-rtx. [default: all that it knows]",
)
@threads_option
@seed_option
@click.option("--check", is_flag=True, help="Validate everything and write nothing.")
@output_option("The bundle. [default: NAME-TARGET-PRECISION.edgecls]")
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    console: Console,
    open_model: Callable[[], Classifier],
    fp32: bool,
    fp16: bool,
    int8: bool,
    calibration: Path | None,
    output: Path | None,
    device: str | None,
    tensorrt_version: str | None,
    compute_capabilities: tuple[str, ...] | None,
    max_drop: Margin | None,
    evaluation: Path | None,
    **options: Any,
) -> int:
    """Turns MODEL into one file that TARGET runs.

    MODEL is a torchvision or timm name (`timm:NAME` where both have it), FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, an
    .onnx file, or a CLIP with --classes (clip:NAME with --checkpoint, clip:NAME/TAG, clip:FILE).
    """
    precision = _precision(context, {"fp32": fp32, "fp16": fp16, "int8": int8})
    _settle_quantization(context, precision, calibration, options)
    tensorrt_version = _tensorrt_version(device, tensorrt_version)
    from edgecls.extra import needs_extra
    from edgecls.runtime import ImageSet

    with needs_extra("export", "Exporting"):
        from edgecls.calibration.quantization import Quantization
        from edgecls.export.job import export_bundle
        from edgecls.export.targets import Gpu

    with console.work() as progress:
        images = None if calibration is None else ImageSet.from_folder(calibration)
        classifier = open_model()
        budget = None
        if precision == "int8" and max_drop is not None and evaluation is not None:
            budget = _budget(max_drop, evaluation, classifier)
        output = output or Path(f"{classifier.name}-{options['target']}-{precision}.edgecls")
        result = export_bundle(
            classifier,
            precision=precision,
            output=output,
            calibration=images,
            gpu=Gpu(tensorrt_version, compute_capabilities or ()),
            quantization=Quantization(**{name: options.pop(name) for name in _QUANTIZATION}),
            budget=budget,
            progress=progress,
            **options,
        )
    _tell(console, result)
    if result.recovery is None:
        return 0
    return {"pass": 0, "fail": 1, "inconclusive": 3}[result.recovery.certificate.verdict]


def _budget(max_drop: Margin, evaluation: Path, classifier: Classifier) -> Budget:
    from edgecls.export.recover import Budget
    from edgecls.runtime import ImageSet

    return Budget(max_drop, ImageSet.from_folder(evaluation, classifier.labels))


def _tell(console: Console, result: ExportResult) -> None:
    """Says what was made, and what to do with it next."""
    manifest, passport = result.manifest, result.manifest.passport
    document = {
        "path": result.path,
        "size_bytes": result.size_bytes,
        "name": manifest.name,
        "target": manifest.target,
        "precision": manifest.precision,
        "passport": passport,
        "parity_max_abs": result.parity_max_abs,
        "notes": result.notes,
        "recovery": None if (recovery := result.recovery) is None else recovery.document(),
    }
    made_for = f"{manifest.target} {passport.engine_version}, {manifest.precision}"
    lines = [
        f"{result.path or 'checked, nothing written'}  {size_text(result.size_bytes)}",
        f"  made for    {made_for}{f', {passport.isa}' if passport.isa else ''}",
        f"  parity      {result.parity_max_abs:.1e} largest difference of a logit, float graph to network",
    ]
    if passport.nodes_int8:
        lines.insert(2, f"  integers    {passport.nodes_int8} of {passport.nodes} operations")
    if recovery is not None:
        judged = recovery.certificate
        kept = f", {', '.join(recovery.floats)} in float" if recovery.floats else ""
        lines.append(
            f"  budget      {judged.verdict}: drop {judged.drop_pp:+.2f} pp on {judged.n} pictures, "
            f"below {judged.upper_pp:.2f} pp at a level of {judged.alpha:.3f}{kept}"
        )
    console.result(document, "\n".join(lines))
    if result.path is None:
        return
    bundle = quoted(result.path)
    if manifest.unbuilt:
        console.next(f"edgecls build {bundle}   (on the device)")
    elif manifest.precision == "int8":
        console.next(f"edgecls bench {bundle} --data DIR --reference FP32.edgecls -o report.json")
    else:
        console.next(f"edgecls classify {bundle} IMAGE")


def _tensorrt_version(device: str | None, version: str | None) -> str | None:
    if device is None or version is not None:
        return version
    from edgecls.runtime.jetson import TENSORRT

    return TENSORRT[device]


def _precision(context: click.Context, flags: dict[Precision, bool]) -> Precision:
    """The one precision that was asked for; flags win over the configuration file."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP):
        asked = [name for name, on in flags.items() if on and context.get_parameter_source(name) is source]
        if len(asked) > 1:
            raise click.UsageError(f"{' and '.join(f'--{name}' for name in asked)} exclude each other: choose one.")
        if asked:
            return asked[0]
    return "fp32"


def _settle_quantization(
    context: click.Context, precision: str, calibration: Path | None, options: dict[str, Any]
) -> None:
    plan = options["plan"]
    if precision == "int8" and calibration is None and plan is None:
        raise click.UsageError(
            "--int8 needs --calibration DIR, a folder of at least 16 pictures as the classifier will see them "
            "(or --plan FILE from an earlier export)."
        )
    if context.params["max_drop"] is not None and context.params["evaluation"] is None:
        raise click.UsageError("--max-drop needs --eval DIR: labelled pictures that did not calibrate.")
    if context.params["evaluation"] is not None and context.params["max_drop"] is None:
        raise click.UsageError("--eval judges --max-drop, which is missing: say what INT8 may cost, for example 1pp.")
    if plan is not None and options["quantizer"] == "nncf":
        raise click.UsageError(
            "--quantizer nncf makes a plan of its own: leave out --plan, or use --quantizer edgecls."
        )
    given = {
        str(parameter.name): parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in _INT8 and on_command_line(parameter.name)
    }
    if given and precision != "int8":
        raise click.UsageError(f"{next(iter(given.values()))} is for --int8, and this export is {precision}.")
    solving = [given[name] for name in ("ranges", "weights", "without") if name in given]
    if plan is not None and solving:
        raise click.UsageError(f"{solving[-1]} says how a plan is made, and --plan {plan} is made: leave out one.")
    if precision != "int8":  # a project's configuration serves its float exports too
        options.update(plan=None, quantizer="edgecls", sensitivity=False)
    options["without"] = frozenset(options["without"])
