"""What `edgecls bench --host` runs on a board: this file's source goes there over SSH, before anything is installed.

So it needs the standard library alone. Everything that it leaves lies in one folder, `edgecls-bench` in the user's
cache folder:

    blobs/SHA256        files that were sent, by the digest of their bytes; `.part` while they are incomplete
    venv-NAME/          edgecls and the engines, with a file `ready` once that is true
    job/                the one measurement: job.json, log, its files by their names, the report, result.json
    lock                held by the process that measures, which no connection owns
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MARKER = b"edgecls-board-answers\n"
"""Precedes every answer: what a shell's start-up files print before it is passed over."""

REPORT = "report"
"""Folder of the job that the report and what stands beside it are written to."""

ROOM_BYTES = 64_000_000
"""Free disk that must remain beside what is sent: a virtual environment without an engine."""

_LOOK_S = 1.0
"""Between two looks at the log: a board that measures is not disturbed more often."""
_STOP_S = 10.0
"""Longest wait for a measurement to clean up after itself."""
_BLOCK_BYTES = 1 << 20
_TAIL_BYTES = 10_000


class Board:
    """What one call may ask for; every public method is a verb, and may be called again after a lost connection.

    What a verb returns is the answer; one that returns None writes to standard output itself.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.blobs, self.job = root, root / "blobs", root / "job"

    def plan(self, job: str, files: dict[str, int]) -> dict[str, Any]:
        """Says what is missing, unless the same job is under way or waits to be collected.

        Args:
            job: Identity of the job.
            files: Digest to size of everything that it needs.

        Returns:
            `state`: `measuring`, `measured`, `busy` with somebody else's job, or `idle`; and, if idle, `missing`:
            digest to the number of bytes that have arrived, and `free_bytes`.
        """
        state = self._state(job)
        if state != "idle":
            return {"state": state}
        _remove(self.job)
        self.blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        have = {path.name: path.stat().st_size for path in self.blobs.iterdir()}
        # By its size too: a board whose power failed may have kept the name alone.
        missing = {digest: have.get(f"{digest}.part", 0) for digest, size in files.items() if have.get(digest) != size}
        return {"state": state, "missing": missing, "free_bytes": shutil.disk_usage(self.root).free}

    def receive(self, files: list[tuple[str, int, int]]) -> dict[str, Any]:
        """Takes files from standard input, one after another.

        Args:
            files: Digest, bytes that have arrived before, bytes in all.

        Returns:
            `damaged`: the digests that the bytes did not have; those files are gone.
        """
        damaged = []
        for digest, offset, size in files:
            part = self.blobs / f"{digest}.part"
            with open(part, "r+b" if offset else "wb", buffering=0) as file:
                file.truncate(min(offset, size))  # a file that has shrunk since begins again with its digest
                file.seek(0, os.SEEK_END)
                _copy(sys.stdin.buffer, file, max(0, size - offset))
            if _sha256(part) == digest:
                part.rename(self.blobs / digest)
            else:
                part.unlink()
                damaged.append(digest)
        return {"damaged": damaged}

    def start(self, job: str, **work: Any) -> dict[str, Any]:
        """Begins the measurement in a process that outlives the connection.

        Args:
            job: Identity of the job.
            work: What `_measure` takes.

        Returns:
            As `plan`.
        """
        state = self._state(job)
        if state != "idle":
            return {"state": state}
        _remove(self.job)
        (self.job / REPORT).mkdir(parents=True)
        (self.job / "job.json").write_text(json.dumps({"job": job}))
        (self.job / "log").touch()  # who follows at once finds it
        with self._lock() as lock:
            if lock:
                if (process := os.fork()) == 0:
                    self._detached(work)
                (self.job / "pid").write_text(str(process))
        return {"state": "measuring" if lock else "busy"}

    def follow(self, offset: int) -> None:
        """Writes the log from a place on to standard output until the measurement ends or the connection does."""
        with contextlib.suppress(FileNotFoundError), open(self.job / "log", "rb") as log:
            log.seek(offset)
            ended = False
            while not ended:
                ended = not self._measuring()  # asked before the last look at the log
                sys.stdout.buffer.write(log.read())
                sys.stdout.buffer.flush()
                if not ended and select.select([sys.stdin], [], [], _LOOK_S)[0]:
                    break

    def collect(self, job: str) -> None:
        """Answers how the measurement ended, and writes its files to standard output after that.

        The answer has a `result` (null where there is none) of `step` (`venv`, `install` or `bench`), `exit_code` and
        `said`, what it printed in the end; and `files`: name and size.
        """
        if self._state(job) != "measured":
            return _answer({"result": None})
        files = sorted((self.job / REPORT).iterdir())
        result = json.loads((self.job / "result.json").read_text())
        _answer({"result": result, "files": [(path.name, path.stat().st_size) for path in files]})
        for path in files:
            sys.stdout.buffer.write(path.read_bytes())
        return None

    def clean(self, job: str, keep: bool) -> dict[str, Any]:
        """Ends the job if it is under way, and removes everything, or only what another job has no use for."""
        state = self._state(job)
        if state == "busy":
            return {}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            if state == "measuring":
                process = int((self.job / "pid").read_text())
                os.killpg(process, signal.SIGTERM)
                deadline = time.monotonic() + _STOP_S
                while self._measuring() and time.monotonic() < deadline:
                    time.sleep(0.1)
                os.killpg(process, signal.SIGKILL)
        for path in (self.job, self.root / "tmp") if keep else (self.root,):
            _remove(path)
        return {}

    def _state(self, job: str) -> str:
        try:
            same = json.loads((self.job / "job.json").read_text())["job"] == job
        except (OSError, ValueError):
            same = False
        if self._measuring():
            return "measuring" if same else "busy"
        return "measured" if same and (self.job / "result.json").exists() else "idle"

    def _measuring(self) -> bool:
        if not self.root.exists():
            return False
        with self._lock() as lock:
            return not lock

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether the lock is ours for the block; a process that is forked in it keeps it."""
        import fcntl  # a workstation that reads this file for its source may be Windows, and has none

        with open(self.root / "lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _detached(self, work: dict[str, Any]) -> None:
        """The measurement, in a session of its own; never returns."""
        try:
            os.setsid()
            # Not ignored, for children inherit that: they are to end, and this process to record it.
            signal.signal(signal.SIGTERM, lambda *_: None)
            log = os.open(self.job / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                os.dup2(source, descriptor)
            self._measure(**work)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def _measure(self, venv: str, wheel: tuple[str, str], extras: str, files: dict[str, str], bench: list[str]) -> None:
        """Installs what is needed and measures.

        Args:
            venv: Name of the environment: another for other contents.
            wheel: Digest and file name of edgecls.
            extras: Those that bring the engines, separated by commas.
            files: Path in the job's folder to digest.
            bench: Arguments of `edgecls bench`.
        """
        for path, digest in {**files, wheel[1]: wheel[0]}.items():
            link = self.job / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.blobs / digest)
        folder = self.root / venv
        python = str(folder / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary=:all:", "-q"]
        steps: list[tuple[str, Sequence[str]]] = []
        if not (folder / "ready").exists():
            _remove(folder)
            # The system's packages are seen: JetPack's TensorRT is one, and what is there need not be fetched.
            steps.append(("venv", [sys.executable, "-m", "venv", "--system-site-packages", str(folder)]))
            steps.append(("install", [*pip, f"{self.job / wheel[1]}[{extras}]"]))
            # An edgecls that is there may have the same version and other contents: pip would be satisfied with it.
            steps.append(("install", [*pip, "--force-reinstall", "--no-deps", str(self.job / wheel[1])]))
        for step, command in steps:
            if exit_code := self._run(step, command, self.job / "log"):
                return self._end(step, exit_code, self.job / "log")
        (folder / "ready").touch()
        os.sync()  # what was sent is written to the disk now, not while latency is measured
        said = self.job / "said"
        exit_code = self._run("bench", [python, "-m", "edgecls", "bench", "--json", *bench], said)
        return self._end("bench", exit_code, said)

    def _run(self, step: str, command: Sequence[str], output: Path) -> int:
        """Runs a command whose caches and temporary files lie in our folder; returns its exit code."""
        print(f"Step {step} ...", flush=True)
        folders = {"XDG_CACHE_HOME": self.root / "cache", "TMPDIR": self.root / "tmp"}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        environment = {**os.environ, **{name: str(folder) for name, folder in folders.items()}}
        with open(output, "ab") as file:
            return subprocess.run(command, cwd=self.job, env=environment, stdout=file, check=False).returncode

    def _end(self, step: str, exit_code: int, said: Path) -> None:
        text = said.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        part = self.job / "result.part"
        part.write_text(json.dumps({"step": step, "exit_code": exit_code, "said": text}))
        part.rename(self.job / "result.json")


def serve() -> None:
    """Does what the first line of standard input asks for, and answers with a line of JSON."""
    request = json.loads(sys.stdin.buffer.readline())
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    verb = getattr(Board(Path(caches) / "edgecls-bench"), request.pop("verb"))
    if verb.__name__ == "follow":
        sys.stdout.buffer.write(MARKER)
    try:
        answer = verb(**request)
    except OSError as error:
        answer = {"error": f"{error.strerror or error} ({error.filename or 'on its disk'})"}
    if answer is not None:
        _answer(answer)
    sys.stdout.buffer.flush()


def _answer(document: dict[str, Any]) -> None:
    sys.stdout.buffer.write(MARKER + json.dumps(document).encode() + b"\n")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copies so many bytes, each written before the next block is awaited; fewer where the source ends."""
    while size > 0 and (block := source.read1(min(size, _BLOCK_BYTES))):  # type: ignore[attr-defined]
        view = memoryview(block)
        while view:
            view = view[target.write(view) :]
        size -= len(block)
    if size > 0:
        sys.exit("the connection ended")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
