"""The command line: finds the verb, and turns every ending into one message and one exit code.

Commands are imported when they are called, and what they need when they run: `edgecls --help` loads click alone.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from edgecls import __version__, commands
from edgecls.console import print_json, printable
from edgecls.options import Invocation
from edgecls.suggestion import did_you_mean

_CLOSED_PIPE = 141
"""128 + SIGPIPE, as a shell reports it: the reader went away, so a verdict may not have been read."""

_SYSTEM_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What the system refuses, to us as to anybody: the user must make room or give leave."""


class VerbGroup(click.Group):
    """The commands are the modules of `edgecls/commands/`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, sorted."""
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of a verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"edgecls.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and suggests close verbs."""
        verbs = self.list_commands(ctx)
        if args[0] not in verbs and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}.{did_you_mean(args[0], verbs) or ' Commands: ' + ', '.join(verbs) + '.'}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click does (help is printed here); a reader that went away has an exit code of its own."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError:
            raise click.exceptions.Exit(_abandon_stdout(_CLOSED_PIPE)) from None

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; a reader that went away has an exit code of its own."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _abandon_stdout(_CLOSED_PIPE)


@click.group(cls=VerbGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgecls")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Options of the commands. [default: edgecls.toml, if the working folder has one]",
)
@click.pass_context
def edgecls(context: click.Context, config: Path | None) -> None:
    """Turns a trained image classifier into one verified file for the board that has to run it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return
    invocation = context.ensure_object(Invocation)
    if config is None and Path("edgecls.toml").is_file():
        config = Path("edgecls.toml")
    if config is not None and not {"-h", "--help"} & set(invocation.arguments):
        from edgecls.config import defaults_from_toml

        invocation.config = config
        context.default_map = defaults_from_toml(config, context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit code: 0 done or pass, 1 negative result, 2 usage or input, 3 inconclusive, 4 invalid report, 5 extra
        missing or unsupported, 6 bundle refused, 7 engine failed, 70 our bug, 130 interrupted, 141 reader gone.
    """
    _open_streams()
    invocation = Invocation(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with _unwound_by_signals():
            code = edgecls.main(invocation.arguments, prog_name="edgecls", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except BrokenPipeError:
        return _abandon_stdout(_CLOSED_PIPE)
    except (click.Abort, KeyboardInterrupt):
        return _fail(invocation, "interrupted", "Interrupted", 130)
    except click.ClickException as error:
        return _fail(invocation, _usage_message(error, invocation), "UsageError", 2)
    except Exception as error:
        return _fail_with(invocation, error)
    return code if isinstance(code, int) else 0


def _open_streams() -> None:
    """Opens standard streams that the caller had closed, and lets them escape what their encoding lacks."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """Lets `kill` and a closed terminal end a command as Ctrl-C does: what it holds is cleaned up."""
    ours = []
    if threading.current_thread() is threading.main_thread():
        asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        ours = [number for number in asked if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _usage_message(error: click.ClickException, invocation: Invocation) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    parameter = getattr(error, "param", None)
    if context is None:
        return message
    if parameter is not None and context.get_parameter_source(parameter.name) is click.core.ParameterSource.DEFAULT_MAP:
        message += f" It comes from [{context.info_name}] in {invocation.config}."
    return f"{message}\nTry '{context.command_path} --help'."


def _fail_with(invocation: Invocation, error: Exception) -> int:
    from edgecls.runtime.errors import EdgeclsError

    if os.environ.get("EDGECLS_DEBUG") == "1":
        traceback.print_exc()
    kind = type(error).__name__
    if isinstance(error, EdgeclsError):
        return _fail(invocation, str(error), kind, error.exit_code)
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        place = "" if error.filename is None else f" ({error.filename})"
        remedy = "Make room or give permission, and run it again."
        return _fail(invocation, f"the system refuses: {error.strerror}{place}. {remedy}", kind, 2)
    message = " ".join(str(error).split())
    hint = "This is a bug in edgecls; EDGECLS_DEBUG=1 shows where."
    return _fail(invocation, f"{kind}: {message}. {hint}" if message else f"{kind}. {hint}", "InternalError", 70)


def _fail(invocation: Invocation, message: str, kind: str, exit_code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {printable(message)}", file=sys.stderr)
    try:
        if invocation.json:
            print_json({"error": {"kind": kind, "message": printable(message), "exit_code": exit_code}})
        sys.stdout.flush()
    except BrokenPipeError:
        return _abandon_stdout(_CLOSED_PIPE)
    except OSError:
        return _abandon_stdout(exit_code)
    return exit_code


def _abandon_stdout(exit_code: int) -> int:
    # The interpreter flushes standard output once more at exit, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return exit_code
