"""`edgecls.toml`: the options of a project, one table per command. Flags win over it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgecls.options import TableCommand
from edgecls.parameter_types import output_file, rgb
from edgecls.suggestion import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def defaults_from_toml(path: Path, context: click.Context) -> dict[str, dict[str, Any]]:
    """Reads a configuration file.

    Every table is named after a command, and every key after one of its long options (`calibration-size` or
    `calibration_size`) or optional arguments (`model`). Paths are relative to the file.

    Args:
        path: The file.
        context: Of the group whose commands the tables configure.

    Returns:
        click's `default_map`: command to parameter to value.

    Raises:
        click.UsageError: The file cannot be read, or has an unknown table or key, or a value of a wrong type.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"cannot read {path}: {error}") from error
    group = context.command
    assert isinstance(group, click.Group)
    verbs = group.list_commands(context)
    defaults = {}
    for verb, table in document.items():
        command = group.get_command(context, verb)
        if command is None:
            raise click.UsageError(
                f"{path}: no command is called [{verb}].{did_you_mean(verb, verbs)} Tables: {', '.join(verbs)}."
            )
        if not isinstance(table, dict):
            raise click.UsageError(f"{path}: {verb!r} stands outside a table; options belong under [{verb}].")
        defaults[verb] = _defaults_from_table(table, command, path, verb)
    return defaults


def _defaults_from_table(table: dict[str, Any], command: click.Command, path: Path, verb: str) -> dict[str, Any]:
    keys = _keys(command)
    defaults: dict[str, Any] = {}
    tables = command.tables if isinstance(command, TableCommand) else {}
    for key, value in table.items():
        if key in tables:
            defaults[key] = _defaults_from_tables(value, tables[key], path, f"{verb}.{key}")
            continue
        parameter, negated = keys.get(key.replace("_", "-"), (None, False))
        if parameter is None or parameter.name is None:
            known = [*keys, *tables]
            raise click.UsageError(
                f"{path}: [{verb}] has no option {key!r}.{did_you_mean(key.replace('_', '-'), known)}"
                f" Options: {', '.join(known)}."
            )
        if parameter.name in defaults:
            raise click.UsageError(f"{path}: [{verb}] sets {key!r} twice.")
        try:
            checked = _checked(parameter, value, path.parent)
        except TypeError as error:
            raise click.UsageError(f"{path}: [{verb}] {key} = {value!r}: {error}.") from error
        defaults[parameter.name] = not checked if negated else checked
    return defaults


def _defaults_from_tables(value: Any, command: click.Command, path: Path, name: str) -> dict[str, dict[str, Any]]:
    """Tables that each hold options of one command, by their names."""
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise click.UsageError(f"{path}: {name} holds tables, each with a name of its own: [{name}.NAME].")
    return {key: _defaults_from_table(table, command, path, f"{name}.{key}") for key, table in value.items()}


def _keys(command: click.Command) -> dict[str, tuple[click.Parameter, bool]]:
    """Key to parameter, and whether the key means its opposite (`no-latency`)."""
    keys: dict[str, tuple[click.Parameter, bool]] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            if not parameter.required and parameter.name is not None:
                keys[parameter.name] = (parameter, False)
            continue
        for spellings, negated in ((parameter.opts, False), (parameter.secondary_opts, True)):
            keys.update({text[2:]: (parameter, negated) for text in spellings if text.startswith("--")})
    return keys


def _checked(parameter: click.Parameter, value: Any, folder: Path) -> Any:
    """The value as click takes it, or a TypeError that says what was expected."""
    if parameter.multiple or parameter.nargs == -1:
        if not isinstance(value, list):
            raise TypeError("a list is expected")
        return [_checked_one(parameter, item, folder) for item in value]
    return _checked_one(parameter, value, folder)


def _checked_one(parameter: click.Parameter, value: Any, folder: Path) -> Any:
    kind = parameter.type
    converter = getattr(kind, "func", None)
    if isinstance(kind, click.types.BoolParamType):
        return _of_type(value, bool, "true or false is expected")
    if isinstance(kind, click.types.IntParamType):
        return _of_type(value, int, "a whole number is expected")
    if isinstance(kind, click.types.FloatParamType):
        return float(_of_type(value, (int, float), "a number is expected"))
    if converter is rgb and isinstance(value, list):
        return ",".join(str(_of_type(item, (int, float), "numbers are expected")) for item in value)
    text = _of_type(value, str, "a string is expected")
    if isinstance(kind, click.Path) or converter is output_file:
        return str(folder / text)
    return _model_beside(folder, text) if parameter.name in {"model", "arch"} else text


def _of_type(value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(expected)
    return value


def _model_beside(folder: Path, text: str) -> str:
    """MODEL with the file that it names, if it names one, looked for in a folder."""
    from edgecls.models.classifier import CLIP, model_file

    if model_file(text, folder) is None:
        return text
    prefix = CLIP if text.startswith(CLIP) else ""
    return f"{prefix}{folder / text.removeprefix(CLIP)}"
