"""How the command line reads values that click has no type for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecls.suggestion import did_you_mean

if TYPE_CHECKING:
    from edgecls.bench.gate_result import Margin

    _NameType = click.ParamType[str]
else:  # generic only since click 8.4
    _NameType = click.ParamType

Rgb = tuple[float, float, float]

INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
INPUT_FOLDER = click.Path(exists=True, file_okay=False, readable=True, path_type=Path)


class OneOf(_NameType):
    """One of a list of names that is only computed when it is asked for.

    Unlike `click.Choice` it suggests the closest name, and it does not load a registry to print another command's
    help.

    Args:
        names: Returns the names.
    """

    name = "name"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the name as it is, or fails with the close ones."""
        names = self._names()
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(names)}.{did_you_mean(str(value), names)}", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, as help shows them."""
        return f"[{'|'.join(self._names())}]"

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What to choose from when the option is missing."""
        return f"Choose from {', '.join(self._names())}."


def one_of(*names: str) -> OneOf:
    """A choice between names that are known in advance."""
    return OneOf(lambda: names)


def rgb(value: str | Rgb) -> Rgb:
    """`0.485,0.456,0.406`, or one number for all three channels."""
    if not isinstance(value, str):
        return value
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"{value!r} is not three numbers such as 0.485,0.456,0.406.")
    return numbers[0], numbers[1], numbers[2]


def cpu_numbers(value: str | tuple[int, ...]) -> tuple[int, ...]:
    """`2,3`, or `0-3`."""
    if not isinstance(value, str):
        return value
    numbers: list[int] = []
    for part in value.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        span = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else ()
        if not span or set(span) & set(numbers):
            raise click.BadParameter(f"{value!r} is no list of distinct CPUs such as 2,3 or 0-3.")
        numbers += span
    return tuple(numbers)


def margin(value: str | Margin) -> Margin:
    """`0.5pp` or `2%rel`; the unit is required because one percent of the accuracy would be something else."""
    from edgecls.bench.gate_result import Margin
    from edgecls.runtime.errors import InputError

    if isinstance(value, Margin):
        return value
    try:
        return Margin.from_text(value)
    except InputError as error:
        raise click.BadParameter(f"{error}.") from error


def duration_ms(value: str | float) -> float:
    """`800ms`, `1.5s`; the unit is required."""
    if isinstance(value, float):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)\s*", value)
    duration = float(match[1]) * {"ms": 1.0, "s": 1e3}[match[2]] if match else 0.0
    if not 0 < duration < math.inf:
        raise click.BadParameter(f"{value!r} is no time such as 800ms or 1.5s.")
    return duration


def size_bytes(value: str | int) -> int:
    """`256MB`, `1GB`: powers of ten; the unit is required."""
    if isinstance(value, int):
        return value
    number, unit = value[:-2].strip(), value[-2:].upper()
    try:
        size = int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise click.BadParameter(f"{value!r} is no size such as 256MB or 1GB.")
    return size


def output_file(value: str | Path) -> Path:
    """A file that can be written: its folder exists. Checked before the work, not after it."""
    path = Path(value)
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder; give a file name.")
    if not path.parent.is_dir():
        raise click.BadParameter(f"the folder {path.parent} does not exist; create it first.")
    if not path.name.isprintable():
        raise click.BadParameter(f"{path.name!r} holds characters that cannot be printed; give another file name.")
    return path
