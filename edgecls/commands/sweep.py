"""`edgecls sweep`: many exports side by side, and what each costs in accuracy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgecls.config import defaults_from_toml
from edgecls.console import Console, quoted, size_text, table_text
from edgecls.options import (
    Invocation,
    TableCommand,
    isa_option,
    model_options,
    output_options,
    quantization_options,
    seed_option,
)
from edgecls.parameter_types import INPUT_FILE, INPUT_FOLDER, OneOf, margin, one_of

if TYPE_CHECKING:
    from edgecls.export.sweep import Outcome, Recipe, SweepReport
    from edgecls.models import Classifier

Precision = Literal["fp32", "fp16", "int8"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*")


@click.command("model")
@model_options
def _model(open_model: Callable[[], Classifier]) -> Callable[[], Classifier]:
    """`[sweep.models.NAME]`."""
    return open_model


@click.command("recipe")
@quantization_options
@click.pass_context
def _recipe(context: click.Context, /, calibration_size: int, without: tuple[str, ...], **options: Any) -> Recipe:
    """`[sweep.recipes.NAME]`."""
    from edgecls.calibration.quantization import Quantization
    from edgecls.export.sweep import Recipe

    quantization = Quantization(without=frozenset(without), **options)  # type: ignore[arg-type]
    return Recipe(str(context.info_name), quantization, calibration_size)


def _targets() -> tuple[str, ...]:
    from edgecls.runtime.engines import engine_names

    return engine_names()


def _read(context: click.Context, _: click.Parameter, file: Path) -> Path:
    """Takes the file's [sweep] for the options that the command line leaves out, and its paths for everybody's."""
    file = file.resolve()
    group = context.parent
    assert group is not None
    context.default_map = defaults_from_toml(file, group).get("sweep", {})
    context.ensure_object(Invocation).config = file
    return file


@click.command("sweep", cls=TableCommand, tables={"models": _model, "recipes": _recipe}, short_help="Many exports.")
@click.argument("file", metavar="FILE", type=INPUT_FILE, is_eager=True, callback=_read)
@click.option("--target", "targets", type=OneOf(_targets), multiple=True, help="Engine; may be repeated.")
@click.option(
    "--precision",
    "precisions",
    type=one_of("fp32", "fp16", "int8"),
    multiple=True,
    help="May be repeated. [default: int8]",
)
@click.option("--data", type=INPUT_FOLDER, metavar="DIR", required=True, help="Pictures, in a sub-folder a class.")
@click.option("--calibration", type=INPUT_FOLDER, metavar="DIR", help="Other pictures, that INT8 is calibrated with.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many pictures, spread over classes.")
@click.option(
    "--max-drop",
    type=margin,
    metavar="Xpp",
    default="1pp",
    show_default=True,
    help="What the verdicts allow against the model's fp32.",
)
@isa_option
@seed_option
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Points at a time. [default: the CPUs of this machine]"
)
@click.option("--ray", metavar="ADDRESS", help="Ray cluster that computes: auto, HOST:PORT, ray://..., or local.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default="sweep",
    show_default=True,
    help="Results; those that it has already are not computed again.",
)
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    console: Console,
    file: Path,
    targets: tuple[str, ...],
    precisions: tuple[Precision, ...],
    data: Path,
    isa: Any,
    seed: int,
    jobs: int | None,
    ray: str | None,
    **options: Any,
) -> int:
    """Exports and measures models × targets × precisions × recipes as FILE says.

    FILE is an edgecls.toml. Its [sweep] holds these options, with lists for target and precision; each
    [sweep.models.NAME] a `model` and other options of `edgecls export` that say what it is; each [sweep.recipes.NAME]
    those that say how INT8 is made. Latency is not measured. The exit code is 1 if a point failed.
    """
    models = _tables(context, "models", _model)
    if not models or not targets:
        missing = "[sweep.models.NAME]" if not models else "`target = [...]` under [sweep]"
        raise click.UsageError(f"{file} has no {missing}: nothing to sweep.", context)
    if jobs is not None and ray not in (None, "local"):
        raise click.UsageError("--jobs is for this machine; a cluster knows its CPUs. Leave it out.", context)
    from edgecls.extra import needs_extra

    with needs_extra("export", "Sweeping"):
        from edgecls.export.sweep import Grid, sweep

    recipes = tuple(_tables(context, "recipes", _recipe).values())
    shared: dict[str, Any] = {"recipes": recipes} if recipes else {}
    grid = Grid(models, _once(targets), _once(precisions) or ("int8",), isa=isa, seed=seed, **shared)
    with console.work() as progress:
        report = sweep(grid, data, jobs=jobs, ray=ray, progress=progress, **options)
    lines = [_table(report), ""]
    lines += [f"FAILED {point.name}: {point.failure}" for point in report.points if point.failure]
    if not console.quiet:
        lines += [f"note: left out {reason}" for reason in report.left_out]
        lines.append(f"note: {report.latency}")
    console.result(report, "\n".join(lines).rstrip())
    for model in models:
        if worth := report.to_bench(model):
            reference, others = worth
            bundles = " ".join(quoted(Path(point.bundle)) for point in others)
            console.next(f"edgecls bench {bundles} --reference {quoted(Path(reference.bundle))} --data {quoted(data)}")
    return report.exit_code


def _once(names: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(names))


def _tables(context: click.Context, key: str, command: click.Command) -> dict[str, Any]:
    """What each table of a group means, by its name."""
    tables: Mapping[str, Any] = (context.default_map or {}).get(key, {})
    found = {}
    for name, values in tables.items():
        place = f"[sweep.{key}.{name}]"
        if not _NAME.fullmatch(name):
            raise click.UsageError(
                f"{place}: the name becomes part of file names; use letters, digits, dots and underscores.", context
            )
        try:
            with command.make_context(name, [], default_map=dict(values)) as own:
                found[name] = command.invoke(own)
        except click.ClickException as error:
            raise click.UsageError(f"{place}: {error.format_message()}", context) from error
    return found


def _table(report: SweepReport) -> str:
    head = ["variant", "size", "top-1", "drop pp [95 %]", f"within {report.max_drop}"]
    return table_text(head, [_cells(point) for point in report.points])


def _cells(point: Outcome) -> list[str]:
    from edgecls.report_table import interval_text, percent_text

    if point.result is None:
        return [point.name, "-", "-", "-", "FAILED"]
    accuracy = point.result.accuracy
    drop = "reference"
    if point.role == "candidate" and accuracy.drop_pp is not None:
        drop = f"{accuracy.drop_pp:+.2f}{interval_text(accuracy.ci95_pp, '+.2f')}"
    size, top1 = size_text(point.result.artifact.size_bytes), percent_text(accuracy.top1)
    return [point.name, size, top1, drop, point.verdict or point.role]
