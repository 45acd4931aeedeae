"""Options that several commands share, each with one name, one type and one explanation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from edgecls.console import Console
from edgecls.parameter_types import INPUT_FILE, OneOf, one_of, output_file, rgb

if TYPE_CHECKING:
    from edgecls.models import PreprocessOverride

Command = TypeVar("Command", bound=Callable[..., Any])


class TableCommand(click.Command):
    """A command whose table in edgecls.toml holds tables in turn, such as `[sweep.models.NAME]`.

    Args:
        tables: Key of a group of tables to the command whose options each of them may hold. What they say stands in the
            context's `default_map` under the same key: name of the table to option to value.
        settings: Of a click command.
    """

    def __init__(self, *, tables: Mapping[str, click.Command], **settings: Any) -> None:
        super().__init__(**settings)
        self.tables = tables


class Invocation:
    """What `main` must know when a command fails, whoever parsed it.

    Args:
        arguments: The command line as it was typed.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.json = "--json" in arguments
        self.config: Path | None = None


def on_command_line(name: str) -> bool:
    """Whether a parameter was given there, not by a project's configuration, which serves other calls too."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def with_options(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Several `click.option`s as one decorator; the help lists them in this order."""
    return functools.partial(functools.reduce, lambda command, option: option(command), options[::-1])


def output_options(command: Command) -> Command:
    """`--json` and `--quiet`; the command receives them as `console`."""

    @functools.wraps(command)
    def with_console(*, json: bool, quiet: bool, **rest: Any) -> Any:
        return command(console=Console(json=json, quiet=quiet), **rest)

    def remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
        invocation = context.find_object(Invocation)
        if invocation is not None:
            invocation.json = value
        return value

    with_quiet = click.option("--quiet", is_flag=True, help="No progress, notes and hints.")(with_console)
    json_option = click.option(
        "--json", is_flag=True, is_eager=True, callback=remember, help="Print one JSON document on standard output."
    )
    return json_option(with_quiet)  # type: ignore[return-value]


def threads_option(command: Command) -> Command:
    """`--threads N`."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        metavar="N",
        help="Threads of one inference. [default: the CPUs that this process may use]",
    )(command)


def seed_option(command: Command) -> Command:
    """`--seed N`."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Fixes every random choice.",
    )(command)


def isa_option(command: Command) -> Command:
    """`--isa NAME`."""
    return click.option(
        "--isa",
        type=OneOf(_isas),
        default="x86-vnni",
        show_default=True,
        help="CPU that an INT8 bundle is made for.",
    )(command)


def _isas() -> tuple[str, ...]:
    from edgecls.runtime.cpu import Isa

    return get_args(Isa)


def output_option(help_text: str, default: str | None = None) -> Callable[[Command], Command]:
    """`-o FILE`, replaced atomically if it exists."""
    return click.option(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        default=default,
        show_default=default is not None,
        help=f"{help_text} An existing file is replaced.",
    )


def model_options(command: Command) -> Command:
    """MODEL, its weights, labels or zero-shot classes, and what overrides its preprocessing.

    The command receives them as `open_model`, a function without arguments that returns the `Classifier`: nothing
    heavy is imported before the command has checked the rest of its options. It can be pickled.
    """

    @functools.wraps(command)
    def with_model(
        *args: Any, model: str | None, checkpoint: Path | None, match: Any, override: PreprocessOverride, **rest: Any
    ) -> Any:
        if model is None:
            raise click.UsageError(
                "no MODEL: give a torchvision or timm name, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, an .onnx file "
                "or clip:NAME, or write `model = ...` into edgecls.toml."
            )
        from edgecls.models import check_zero_shot, model_file, open_classifier
        from edgecls.runtime import Labels
        from edgecls.runtime.atomic_file import refuse_overwriting

        read = [model_file(model), checkpoint, rest["labels"], rest["classes"], rest.get("plan")]
        for output in filter(None, (rest.get("output"), rest.get("confusion"))):
            refuse_overwriting(output, filter(None, read))
        labels, classes = (
            None if file is None else Labels.from_file(file) for file in (rest.pop("labels"), rest.pop("classes"))
        )
        templates = rest.pop("templates")
        check_zero_shot(model, classes, templates, labels)

        open_model = functools.partial(
            open_classifier,
            model,
            checkpoint=checkpoint,
            match=match,
            labels=labels,
            override=override,
            classes=classes,
            templates=templates,
        )
        return command(*args, open_model=open_model, **rest)

    return with_options(_MODEL_OPTIONS)(preprocess_options(with_model))  # type: ignore[return-value]


def preprocess_options(command: Command) -> Command:
    """What overrides a model's preprocessing; the command receives a `PreprocessOverride` as `override`."""

    @functools.wraps(command)
    def with_override(*args: Any, **rest: Any) -> Any:
        from edgecls.models import PreprocessOverride

        override = PreprocessOverride(**{field: rest.pop(field) for field in PREPROCESS_FIELDS})
        return command(*args, override=override, **rest)

    return with_options([*PREPROCESS_FIELDS.values()])(with_override)  # type: ignore[return-value]


def quantization_options(command: Command) -> Command:
    """How INT8 is made: `calibration_size` and the fields of `Quantization`."""
    return with_options(_QUANTIZATION_OPTIONS)(command)


_QUANTIZATION_OPTIONS = [
    click.option(
        "--calibration-size",
        type=click.IntRange(min=16),
        metavar="N",
        default=256,
        show_default=True,
        help="At most so many calibration pictures, spread over the classes.",
    ),
    click.option(
        "--quantizer", type=one_of("edgecls", "nncf"), default="edgecls", show_default=True, help="Who makes the plan."
    ),
    click.option(
        "--ranges",
        type=one_of("auto", "minmax", "percentile", "mse", "entropy"),
        default="auto",
        show_default=True,
        help="How ranges are chosen; auto: for each tensor, what hurts its readers least.",
    ),
    click.option(
        "--weights",
        type=one_of("per-channel", "per-tensor"),
        default="per-channel",
        show_default=True,
        help="Whether each channel of a weight has its own grid.",
    ),
    click.option(
        "--without",
        type=one_of("equalization", "smoothquant", "float-stem", "bias-correction"),
        multiple=True,
        help="Leave out a correction; may be repeated.",
    ),
]

_MODEL_OPTIONS = [
    click.argument("model", required=False),
    click.option("--checkpoint", type=INPUT_FILE, metavar="FILE", help="Trained weights: .pth, .pt, .safetensors, ..."),
    click.option(
        "--match",
        type=one_of("name", "order"),
        default="name",
        show_default=True,
        help="How weights find their layers; `order` accepts the names of another code base.",
    ),
    click.option(
        "--labels", type=INPUT_FILE, metavar="FILE", help="A class a line: `name`, `id name` or id, TAB, name."
    ),
    click.option(
        "--classes", type=INPUT_FILE, metavar="FILE", help="What a clip: model tells apart, in the format of --labels."
    ),
    click.option(
        "--template",
        "templates",
        multiple=True,
        metavar="TEXT",
        help="Text that a clip: model's classes are put into at {}; repeat it to average several. "
        "[default: a photo of a {}]",
    ),
]

_SIDE = click.IntRange(min=1)

PREPROCESS_FIELDS = {
    "resize_px": click.option("--resize", "resize_px", type=_SIDE, metavar="PX", help="Side after the resize."),
    "crop_px": click.option("--crop", "crop_px", type=_SIDE, metavar="PX", help="Side of the centre crop."),
    "interpolation": click.option("--interpolation", type=one_of("bilinear", "bicubic"), help="Filter of the resize."),
    "mean": click.option("--mean", type=rgb, metavar="R,G,B", help="Subtracted from pixels in 0..1."),
    "std": click.option("--std", type=rgb, metavar="R,G,B", help="Divided by afterwards."),
    "mode": click.option(
        "--resize-mode", "mode", type=one_of("shorter", "squash"), help="Resize the shorter side, or both to --resize."
    ),
    "colour": click.option(
        "--colour", type=one_of("rgb", "bgr"), help="Channel order that the network was trained on."
    ),
    "exif": click.option("--exif", type=one_of("ignore", "apply"), help="Whether pictures are turned as EXIF says."),
    "scaled_decode": click.option(
        "--scaled-decode/--no-scaled-decode",
        default=None,
        help="Decode large JPEG files at a part of their size. [off]",
    ),
}
"""Field of `PreprocessOverride` to option; each is None unless given, and then wins over what the model says."""
