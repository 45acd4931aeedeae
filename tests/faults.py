"""Lets an operation meet a fault at every point where it touches the disk, each time in a process of its own.

`meet` runs in a test. It starts this file as a process, which imports what the operation needs once and forks for each
point. What the child leaves in its folder, the test judges.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

Fault = Literal["kill", "full", "interrupt"]

_PART, _LOCK = ".edgecls-", ".lock"


class Operation(Protocol):
    """A module of this folder: what is done, and what may be there afterwards."""

    def prepare(self, folder: Path) -> None:
        """Makes what an earlier, good run left."""

    def run(self, folder: Path) -> None:
        """Replaces it."""


class Outcome(NamedTuple):
    """What became of one child."""

    folder: Path
    fault: Fault
    point: int
    end: str
    """`done`, `killed`, `interrupted`, `refused` (an `EdgeclsError`), `bug` (another exception) or `astray` (a file of
    the folder was opened for writing that does not take its name at the end)."""
    text: str
    """Of the error."""


def meet(operation: str, fault: Fault, folder: Path, *, points: int | None = None, seed: int = 0) -> list[Outcome]:
    """Runs an operation once without a fault, point 0, and once with it at each of its points.

    Args:
        operation: Name of its module in this folder.
        fault: `kill` ends the process by SIGKILL, in the middle of a write where the point is one; `full` writes half,
            then the disk is full for good; `interrupt` raises KeyboardInterrupt.
        folder: Gets a folder for each point.
        points: How many points, drawn by `seed`; by default all.
    """
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import faults; faults.main()"
    chosen = [] if points is None else [str(points), str(seed)]
    done = subprocess.run(
        [sys.executable, "-c", code, operation, fault, str(folder), *chosen],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"point"')]
    return [Outcome(folder / f"{fault}-{row['point']}", fault, **row) for row in rows]


def main() -> None:
    """The process that forks: `OPERATION FAULT FOLDER [POINTS SEED]`."""
    name, fault, root = sys.argv[1:4]
    operation: Any = importlib.import_module(name)

    def attempt(point: int) -> str:
        folder = Path(root, f"{fault}-{point}")
        folder.mkdir()
        operation.prepare(folder)
        end, text = _forked(operation, folder, _Injector(fault, point))
        print(json.dumps({"point": point, "end": end, "text": text}), flush=True)
        return text

    count = int(attempt(0))  # no point: it only counts them
    points: Sequence[int] = range(1, count + 1)
    if len(sys.argv) > 4:
        points = sorted(random.Random(int(sys.argv[5])).sample(points, min(int(sys.argv[4]), count)))
    for point in points:
        attempt(point)


def _forked(operation: Operation, folder: Path, injector: _Injector) -> tuple[str, str]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os._exit(_child(operation, folder, injector, writer))
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ends = {0: "done", 2: "refused", 3: "interrupted", 4: "astray", -signal.SIGKILL: "killed"}
    return ends.get(status, "bug"), text


def _child(operation: Operation, folder: Path, injector: _Injector, writer: int) -> int:
    def say(text: str) -> None:
        os.write(writer, text[-4000:].encode(errors="replace"))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = Path(arguments[0])
            if folder in path.parents and not path.name.startswith(_PART) and path.suffix != _LOCK:
                say(f"{path} was opened for writing")
                os._exit(4)

    sys.addaudithook(watch)
    injector.install()
    try:
        operation.run(folder)
    except KeyboardInterrupt:
        return 3
    except BaseException as error:
        say(str(error) if hasattr(error, "exit_code") else traceback.format_exc())
        return 2 if hasattr(error, "exit_code") else 1
    say(str(injector.met))
    return 0


class _Injector:
    """Counts the touches of the disk, and lets the fault happen at one of them."""

    def __init__(self, fault: str, point: int) -> None:
        self.fault, self.point, self.met = fault, point, 0
        self.full = False

    def install(self) -> None:
        """Every write of edgecls goes through `atomic_file`, whose calls are these."""
        from edgecls.runtime.atomic_file import _WatchedFile

        write = _WatchedFile.write

        def written(file: Any, data: Any, /) -> int:
            half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
            file.watch(self.touch, lambda: os.write(file.fileno(), half))
            count = write(file, data)
            self.after()
            return count

        _WatchedFile.write = written  # type: ignore[method-assign]
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._around(getattr(os, name), spared=name == "unlink"))

    def touch(self, partly: Callable[[], object] = lambda: None) -> None:
        """One point; `partly` is the half of the operation that is done when the fault comes."""
        self.met += 1
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.met != self.point:
            return
        partly()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "interrupt":
            raise KeyboardInterrupt
        elif self.fault == "full":
            self.full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after(self) -> None:
        """The point behind an operation that went well; only a kill makes a difference there."""
        if self.fault == "kill":
            self.touch()

    def _around(self, call: Callable[..., Any], *, spared: bool) -> Callable[..., Any]:
        def around(*arguments: Any, **options: Any) -> Any:
            if self.fault == "kill" or not spared:  # a full disk still removes files
                self.touch()
            result = call(*arguments, **options)
            self.after()
            return result

        return around


def left_over(folder: Path) -> list[str]:
    """Files that were written aside and never took their name."""
    return sorted(path.name for path in folder.rglob(f"{_PART}*"))
