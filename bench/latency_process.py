"""The parent's side of a process that is timed: it is asked, it answers in time, or it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.errors import EngineError

COMMAND = (sys.executable, "-m", "edgecls.bench.latency_worker")

_LOAD_S = 300
"""What loading may take: on a small board engines compile for minutes."""
_ANSWER_S = 120.0
"""Longest wait for an answer, beyond what the command itself is meant to take."""
_STDERR_TAIL_CHARS = 2000
_STDERR_TAIL_LINES = 3
_TRACEBACK = ("Traceback (", '  File "', "    ")
"""How lines of a traceback begin that tell where, not what."""

Answer = TypeVar("Answer", bound=msgspec.Struct)


@dataclass(frozen=True)
class Variant:
    """What a process is told to time."""

    name: str
    bundle: Path
    sha256: str
    """Digest of the bundle."""
    crops: NDArray[np.uint8]
    """`uint8 [crops, crop, crop, 3]`, RGB: real pictures, preprocessed for this bundle."""


class Ready(msgspec.Struct, frozen=True):
    """First line of the process."""

    ready: bool


class Loaded(msgspec.Struct, frozen=True):
    """Answer to `load`."""

    sha256: str
    """Of the bundle that was loaded."""
    import_ms: float
    load_ms: float
    first_inference_ms: float
    provider_requested: str
    provider_used: str


class WarmUp(msgspec.Struct, frozen=True):
    """Answer to `warm_up`."""

    seconds: float
    settled: bool


class Slice(msgspec.Struct, frozen=True):
    """Answer to `time_slice`."""

    samples_ns: list[int]


class StageSlice(msgspec.Struct, frozen=True):
    """Answer to `time_stages`."""

    samples_ns: list[tuple[int, int, int, int]]
    """Decode, preprocess, model, top-k."""


class Batches(msgspec.Struct, frozen=True):
    """Answer to `run`."""

    images: int
    seconds: float


class PeakMemory(msgspec.Struct, frozen=True):
    """Answer to `peak_memory`."""

    peak_rss_bytes: int | None


class WorkerProcess:
    """One process of `latency_worker`. A context manager: the process does not outlive the block.

    Attributes:
        process_ms: From the start of the process to its first line.

    Args:
        name: For messages.
        folder: Working directory and place of the log, outside any repository whose folders could shadow packages.
        command: What to run.
        answer_s: Longest wait for an answer, beyond what the command itself is meant to take.

    Raises:
        EngineError: The process did not come up.
    """

    process_ms: float

    def __init__(self, name: str, folder: Path, command: Sequence[str] = COMMAND, answer_s: float = _ANSWER_S) -> None:
        self._name, self._answer_s = name, answer_s
        self._log = folder / f"{threading.get_native_id()}-{time.monotonic_ns()}.log"
        start = time.perf_counter_ns()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                encoding="utf-8",
                # Ctrl-C is the parent's to handle: it ends the children.
                start_new_session=os.name == "posix",
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()
        try:
            self._answer(Ready, "start", 0)
        except BaseException:
            self.close(kill=True)
            raise
        self.process_ms = (time.perf_counter_ns() - start) / 1e6

    def ask(self, answer: type[Answer], do: str, takes_s: float = 0, **arguments: Any) -> Answer:
        """Sends a command and waits for its answer.

        Args:
            answer: Type of the answer.
            do: Name of the command.
            takes_s: How long the command is meant to take.
            arguments: Of the command.

        Raises:
            EngineError: The process reported an error, died, or did not answer in time.
        """
        assert self._process.stdin is not None
        # Where the process is gone already, the missing answer says so, with its last words.
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(answer, do, takes_s)

    def _answer(self, answer: type[Answer], do: str, takes_s: float) -> Answer:
        try:
            line = self._lines.get(timeout=takes_s + self._answer_s)
        except queue.Empty:
            self.close(kill=True)
            raise EngineError(
                f"the process that times {self._name} did not answer '{do}' within {takes_s + self._answer_s:.0f} s "
                f"and was ended{self._last_words()}"
            ) from None
        if line is None:
            self.close()
            code = self._process.returncode
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise EngineError(f"the process that times {self._name} died at '{do}' ({cause}){self._last_words()}")
        try:
            return msgspec.json.decode(line, type=answer)
        except msgspec.DecodeError:
            self.close(kill=True)
            told = _without_folders(_error_of(line) or f"it answered {line.strip()!r}")
            raise EngineError(f"the process that times {self._name} failed at '{do}': {told}") from None

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_TRACEBACK)]
        words = _without_folders(" ".join(lines[-_STDERR_TAIL_LINES:]))
        return f"; its last words: {words[-_STDERR_TAIL_CHARS:]}" if words else ""

    def close(self, *, kill: bool = False) -> None:
        """Ends the process: by the end of its input, or by force."""
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=10)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kill=error is not None)


def load_variant(
    stack: ExitStack,
    variant: Variant,
    folder: Path,
    *,
    threads: int,
    cpus: Sequence[int] | None,
    command: Sequence[str] = COMMAND,
) -> tuple[WorkerProcess, Loaded]:
    """Starts a fresh process that lives as long as `stack` and lets it load a variant.

    Args:
        stack: Ends the process.
        variant: What is loaded.
        folder: Takes the crops and the process's log.
        threads: Threads of one inference.
        cpus: CPUs to pin the process to, or None.
        command: The worker's command line.

    Raises:
        EngineError: The process failed, the bundle is another one by now, or the engine fell back to another provider.
    """
    crops = folder / f"{variant.sha256[:32]}-{len(variant.crops)}.npy"
    if not crops.exists():
        np.save(crops, variant.crops)
    process = stack.enter_context(WorkerProcess(variant.name, folder, command))
    loaded = process.ask(
        Loaded,
        "load",
        _LOAD_S,
        bundle=str(variant.bundle.resolve()),
        threads=threads,
        cpus=None if cpus is None else list(cpus),
        crops=str(crops),
    )
    if loaded.sha256 != variant.sha256:
        raise EngineError(f"{variant.bundle.name} was replaced while the measurement ran: measure again")
    if loaded.provider_used != loaded.provider_requested:
        raise EngineError(
            f"the engine fell back from {loaded.provider_requested} to {loaded.provider_used}: "
            "the measurement would not be of what was asked for"
        )
    return process, loaded


def _without_folders(text: str) -> str:
    """The text with files' names alone, for folders name users and customers, and messages come to stand in reports."""
    home = os.path.expanduser("~")
    for folder in {home, os.path.realpath(home)} - {"/", "~"}:
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    return re.sub(r"(?<![\w.:/])~?/(?:[^\s/'\":]+/)+", "", text)


def _error_of(line: str) -> str | None:
    """The message of an `{"error": ...}` answer."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    message = document.get("error") if isinstance(document, dict) else None
    return message if isinstance(message, str) else None
