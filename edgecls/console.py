"""Where a command writes: its result to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecls.runtime.progress import Advance, Progress

_REDRAW_S = 0.1
_LINE_S = 10.0


class Console:
    """The two streams of one command.

    Args:
        json: The result is one JSON document.
        quiet: No progress, notes or hints.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    @contextlib.contextmanager
    def work(self) -> Iterator[Progress]:
        """Surrounds the call that does the work, and tells where it is.

        What libraries print meanwhile goes to standard error: NNCF, OpenVINO and torch's exporter think that
        standard output is theirs.
        """
        sys.stdout.flush()
        saved = os.dup(1)
        try:
            os.dup2(2, 1)
            with contextlib.redirect_stdout(sys.stderr):
                yield self._progress()
        finally:
            os.dup2(saved, 1)
            os.close(saved)

    def _progress(self) -> Progress:
        from edgecls.runtime.progress import SilentProgress

        if self.quiet:
            return SilentProgress()
        return BarProgress() if sys.stderr.isatty() else LineProgress()

    def result(self, document: Any, text: str) -> None:
        """Prints the result: the document with `--json`, otherwise the text."""
        if self.json:
            print_json(document)
        else:
            print(printable(text))

    def next(self, command: str) -> None:
        """Prints the next useful command."""
        if not self.quiet:
            print(f"\nNext: {command}", file=sys.stderr if self.json else sys.stdout)


def json_text(document: Any) -> str:
    """A document of builtins, msgspec records, dataclasses and paths as indented JSON; NaN becomes null."""
    import msgspec

    return msgspec.json.format(
        msgspec.json.encode(document, enc_hook=lambda value: printable(str(value))), indent=2
    ).decode()


def print_json(document: Any) -> None:
    """Prints a document as UTF-8, which JSON is whatever the terminal speaks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(json_text(document), flush=True)


def quoted(path: Path) -> str:
    """A path as a shell takes it, for commands that are shown to be copied."""
    return shlex.quote(str(path))


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\n"}
# What turns the direction of the text after it.
_CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """The text with control characters but line ends, and bytes of a file name that are no UTF-8, escaped.

    A bundle's texts come from strangers, and terminals obey what is printed.
    """
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table: the first column to the left, numbers to the right, as wide as it has to be."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(head), "  ".join("-" * width for width in widths), *map(aligned, rows)])


def size_text(size_bytes: int) -> str:
    """Bytes for people, in powers of ten."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def time_text(seconds: float) -> str:
    """A time for people, as one reads it off a clock: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class BarProgress:
    """Bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        # No refresh thread: it would take time from the inference that bench measures.
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            auto_refresh=False,
        )
        self._open = 0

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Shows a bar for the time of the block."""
        if self._open == 0:
            self._bars.start()
        self._open += 1
        task = self._bars.add_task(title, total=total)
        self._bars.refresh()
        drawn = time.monotonic()

        def advance(steps: int) -> None:
            nonlocal drawn
            self._bars.advance(task, steps)
            if time.monotonic() - drawn >= _REDRAW_S:
                self._bars.refresh()
                drawn = time.monotonic()

        try:
            yield advance
        finally:
            self._bars.stop_task(task)
            self._open -= 1
            if self._open:  # stages inside of others come by the dozen, and would push the last ones off the screen
                self._bars.remove_task(task)
            self._bars.refresh()
            if self._open == 0:
                self._bars.stop()
                for shown in self._bars.task_ids:
                    self._bars.remove_task(shown)

    def note(self, message: str) -> None:
        """Prints above the bars."""
        self._bars.console.print(f"note: {printable(message)}", markup=False, highlight=False, soft_wrap=True)


class LineProgress:
    """Plain lines for logs: one when a stage begins, one every ten seconds, one when it ends."""

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Prints the beginning and the end of the block."""
        began = told = time.monotonic()
        first: tuple[float, int] | None = None
        done = 0
        print(f"{title} ...", file=sys.stderr, flush=True)

        def advance(steps: int) -> None:
            nonlocal done, first, told
            done += steps
            now = time.monotonic()
            if now - told >= _LINE_S:
                told = now
                of = f" of {total}" if total else ""
                if total and first and done > first[1]:
                    of += f", about {time_text((total - done) * (now - first[0]) / (done - first[1]))} left"
                print(f"{title}: {done}{of}", file=sys.stderr, flush=True)
            first = first or (now, done)  # the first call may tell what was done before a resume, and took no time

        yield advance
        print(f"{title}: done in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """Prints one line."""
        print(f"note: {printable(message)}", file=sys.stderr, flush=True)
