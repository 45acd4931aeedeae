"""`edgecls train`: image folder to checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecls.console import Console, quoted, size_text
from edgecls.options import (
    on_command_line,
    output_option,
    output_options,
    preprocess_options,
    seed_option,
    threads_option,
    with_options,
)
from edgecls.parameter_types import INPUT_FILE, INPUT_FOLDER, one_of, output_file

if TYPE_CHECKING:
    from edgecls.models.recipe import Recipe

_HOG_SVM = {"data", "arch", "kernel", "limit", "seed", "output", "json", "quiet"}
"""Options that it takes."""

_POSITIVE = click.FloatRange(min=0, min_open=True)
_SHARE = click.FloatRange(min=0, max=1, max_open=True)

_RECIPE = [
    click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="In which every layer learns. [20; 60]"),
    click.option("--head-epochs", type=click.IntRange(min=0), metavar="N", help="Before, of the head alone. [3; 0]"),
    click.option("--batch-size", type=click.IntRange(min=2), metavar="N", help="Pictures a step. [64; 128]"),
    click.option("--lr", "learning_rate", type=_POSITIVE, metavar="X", help="Highest learning rate. [0.001; 0.003]"),
    click.option("--layer-decay", type=_POSITIVE, metavar="X", help="Of the learning rate by depth. [0.75; 1]"),
    click.option("--warmup-epochs", type=click.FloatRange(min=0), metavar="X", help="Of a rising rate. [1; 2]"),
    click.option("--weight-decay", type=click.FloatRange(min=0), metavar="X", help="[0.05]"),
    click.option("--label-smoothing", type=_SHARE, metavar="X", help="[0.1]"),
    click.option("--clip-norm", type=_POSITIVE, metavar="X", help="Largest norm of the gradient. [1]"),
    click.option("--ema-decay", type=_SHARE, metavar="X", help="Of the averaged weights; 0 is none. [0.999]"),
    click.option("--patience", type=click.IntRange(min=1), metavar="N", help="Epochs without a better one. [8; 20]"),
    click.option("--crop-scale", type=_POSITIVE, metavar="X", help="Least share of a picture in a crop. [0.35]"),
    click.option("--shift", type=_SHARE, metavar="X", help="Share of the side; instead of random crops. [0]"),
    click.option("--train-px", type=click.IntRange(min=8), metavar="PX", help="Side of random crops. [--crop]"),
    click.option(
        "--start-px", type=click.IntRange(min=8), metavar="PX", help="Side of the first ones, which grow. [--train-px]"
    ),
    click.option("--flip/--no-flip", default=None, help="Left and right; not for text or organs. [on]"),
    click.option("--trivial-augment/--no-trivial-augment", default=None, help="Geometry and colours. [on]"),
    click.option("--erasing", type=_SHARE, metavar="X", help="Share with an erased rectangle. [0.1]"),
    click.option("--mixup", type=click.FloatRange(min=0), metavar="X", help="Blend pairs: Beta(X, X). [0]"),
    click.option("--cutmix", type=click.FloatRange(min=0), metavar="X", help="Paste rectangles: Beta(X, X). [0]"),
    click.option(
        "--refine-epochs", type=click.IntRange(min=0), metavar="N", help="Last ones, of crops and flips alone. [0]"
    ),
    click.option("--class-weights/--no-class-weights", default=None, help="Rare classes weigh as much. [off]"),
    click.option("--bf16", is_flag=True, default=None, help="Multiply 16-bit floats, where this CPU can."),
    click.option("--val-fraction", type=_SHARE, metavar="X", help="Of one folder, to validate. [0.1]"),
]
"""One option a field of `Recipe`; its help shows the default, or those with and without `--from-scratch`."""


@click.command("train", short_help="Image folder to checkpoint.")
@click.option("--data", type=INPUT_FOLDER, metavar="DIR", required=True, help="train/ and val/, or folders of classes.")
@click.option("--arch", metavar="NAME", required=True, help="A torchvision or timm name, a factory, or hog-svm.")
@click.option("--from-scratch", is_flag=True, help="Begin with random weights.")
@click.option("--freeze", is_flag=True, help="Train the head only.")
@click.option("--checkpoint", type=INPUT_FILE, metavar="FILE", help="Weights to begin with. [default: the library's]")
@click.option("--match", type=one_of("name", "order"), default="name", show_default=True, help="How they find layers.")
@preprocess_options
@with_options(_RECIPE)
@click.option("--kernel", type=one_of("rbf", "linear"), help="Of hog-svm. [default: rbf]")
@click.option("--limit", type=click.IntRange(min=2), metavar="N", help="At most so many training pictures.")
@click.option("--half", is_flag=True, help="Store 16-bit floats: half the file.")
@click.option("--resume", is_flag=True, help="Go on with a training that was killed.")
@click.option("--preview", type=output_file, metavar="FILE.png", help="Draw augmented pictures; train nothing.")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Processes that decode. [default: the CPUs]")
@threads_option
@seed_option
@output_option("The weights. [default: model.safetensors; model.onnx for hog-svm]")
@output_options
def command(
    console: Console,
    data: Path,
    arch: str,
    override: Any,
    from_scratch: bool,
    freeze: bool,
    checkpoint: Path | None,
    match: Any,
    kernel: Any,
    limit: int | None,
    half: bool,
    resume: bool,
    preview: Path | None,
    workers: int | None,
    threads: int | None,
    seed: int,
    output: Path | None,
    **fields: Any,
) -> int:
    """Trains a classifier of the pictures in a folder.

    The weights, and NAME.train.json beside them, need nothing else: `edgecls export NAME.safetensors`. Defaults in
    brackets are those of fine-tuning and, behind the semicolon, of --from-scratch.
    """
    from edgecls.extra import needs_extra
    from edgecls.models import model_file
    from edgecls.models.training_data import TrainingData
    from edgecls.runtime.atomic_file import refuse_overwriting
    from edgecls.runtime.cpu import cpu_count
    from edgecls.runtime.progress import SilentProgress

    if arch == "hog-svm":
        _refuse_options_of_networks()
        return _train_hog_svm(console, data, kernel or "rbf", limit, seed, output or Path("model.onnx"))
    if on_command_line("kernel"):
        raise click.UsageError(f"--kernel {kernel} is for --arch hog-svm, and this is {arch}: leave it out.")
    recipe = _recipe(fields, from_scratch=from_scratch, freeze=freeze, seed=seed)
    if preview is not None:
        return _preview(console, data, arch, override, checkpoint, recipe, limit, preview)
    output = output or Path("model.safetensors")
    # What `accelerate launch` and `torchrun` tell each process that they start.
    rank, ranks_here = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with console.work() as progress, needs_extra("train", "Training"):
        progress = SilentProgress() if rank else progress
        from edgecls.models.train import input_of, refuse_output, refuse_start, train
        from edgecls.models.training_memory import keep_freed_memory

        refuse_overwriting(output, filter(None, (model_file(arch), checkpoint)))
        # First what costs nothing: the pictures may take an hour to read.
        preprocess = input_of(arch, override, checkpoint)
        refuse_output(output, resume=resume)
        start: dict[str, Any] = {"from_scratch": from_scratch, "checkpoint": checkpoint, "match": match}
        refuse_start(arch, preprocess, **start)
        pictures = TrainingData.open(data, val_fraction=recipe.val_fraction, limit=limit, progress=progress)
        for note in pictures.notes:
            progress.note(note)
        keep_freed_memory()
        result = train(
            arch,
            pictures,
            preprocess=preprocess,
            output=output,
            recipe=recipe,
            **start,
            half=half,
            resume=resume,
            workers=max(1, cpu_count() // ranks_here) if workers is None else workers,
            threads=threads,
            progress=progress,
        )
    if rank:  # the first process speaks for all
        return 0
    record = result.record
    console.result(
        {"path": result.path, "record_path": result.record_path, "record": record},
        f"""\
{result.path}
  validation  {100 * record.val_top1:.2f} % of {record.val_images} pictures (balanced {100 * record.val_balanced:.2f} %)
  best epoch  {record.best.epoch} of phase {record.best.phase}, {len(record.epochs)} in {record.seconds:.0f} s
  recipe      {result.record_path}""",
    )
    model = f"{arch} --checkpoint {quoted(result.path)}" if result.card.is_own_code else quoted(result.path)
    console.next(f"edgecls export {model} --target onnxruntime --int8 --calibration DIR")
    return 0


def _recipe(fields: dict[str, Any], *, from_scratch: bool, freeze: bool, seed: int) -> Recipe:
    from edgecls.models.recipe import Recipe

    given = {name: value for name, value in fields.items() if value is not None}
    if freeze:
        if given.get("epochs") and on_command_line("epochs"):
            raise click.UsageError("--freeze trains the head only: say how long with --head-epochs, not --epochs.")
        given = {"head_epochs": 10, **given, "epochs": 0}
    return (Recipe.from_scratch if from_scratch else Recipe)(**given, seed=seed)


def _refuse_options_of_networks() -> None:
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _HOG_SVM and on_command_line(str(parameter.name))
    ]
    if given:
        raise click.UsageError(
            f"hog-svm is no network: leave out {', '.join(given)}; it takes --kernel, --limit and --seed."
        )


def _train_hog_svm(console: Console, data: Path, kernel: Any, limit: int | None, seed: int, output: Path) -> int:
    from edgecls.models.hog_svm import refuse_hog_svm, train_hog_svm
    from edgecls.models.training_data import TrainingData

    with console.work() as progress:
        refuse_hog_svm(output)
        pictures = TrainingData.open(data, val_fraction=None, limit=limit, decode=False, progress=progress)
        for note in pictures.notes:
            progress.note(note)
        result = train_hog_svm(
            pictures.train, pictures.labels, output=output, kernel=kernel, seed=seed, progress=progress
        )
    console.result(
        result,
        f"""\
{result.path}  {size_text(result.size_bytes)}
  accuracy         {100 * result.cv_accuracy:.2f} % in cross-validation of {result.pictures} pictures
  support vectors  {result.support_vectors}""",
    )
    console.next(f"edgecls evaluate {quoted(result.path)} --data DIR")
    return 0


def _preview(
    console: Console,
    data: Path,
    arch: str,
    override: Any,
    checkpoint: Path | None,
    recipe: Recipe,
    limit: int | None,
    output: Path,
) -> int:
    from edgecls.extra import needs_extra
    from edgecls.models import model_file
    from edgecls.models.training_data import TrainingData
    from edgecls.runtime.atomic_file import refuse_overwriting, refuse_unwritable
    from edgecls.runtime.errors import InputError

    with console.work() as progress, needs_extra("train", "Training"):
        from edgecls.models.augment import draw_preview
        from edgecls.models.train import input_of

        refuse_overwriting(output, filter(None, (model_file(arch), checkpoint)))
        if data.resolve() in output.resolve().parents:
            raise InputError(f"{output} would be one of the pictures of {data}: give --preview another folder.")
        refuse_unwritable(output)
        preprocess = input_of(arch, override, checkpoint)
        pictures = TrainingData.open(
            data, val_fraction=recipe.val_fraction, limit=limit, decode=False, progress=progress
        )
        with progress.stage("Drawing"):
            draw_preview(pictures.train, pictures.labels, preprocess, recipe, output)
    console.result({"path": output}, str(output))
    return 0
