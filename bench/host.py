"""A measurement on another machine: sends what it needs over SSH, lets it run there, brings the report back.

Nothing is timed here, and nothing is sent while the board measures. The measurement is a process of the board's own: a
lost connection is made again, and finds it where it is. What was sent is known by its digest and is not sent twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgecls.bench import board
from edgecls.bench.board_job import BoardJob, board_job
from edgecls.bench.connection import Connection, GoneError, LostConnectionError
from edgecls.bench.report import Report, predictions_path, report_stem, samples_path, write_report_files
from edgecls.bench.scratch import scratch_folder
from edgecls.runtime.atomic_file import refuse_overwriting, refuse_unwritable
from edgecls.runtime.errors import BundleError, EdgeclsError, EngineError, InputError, UnsupportedError
from edgecls.runtime.progress import Progress, SilentProgress

PATIENCE_S = 300.0
"""How long a lost connection is waited for: a board that restarts its network is back by then."""

_MEGABYTE = 1_000_000
"""Of the progress, and of what is read at once."""


def measure_on_host(
    host: str,
    bundles: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    keep: bool = False,
    ssh_config: str | os.PathLike[str] | None = None,
    patience_s: float = PATIENCE_S,
    progress: Progress = SilentProgress(),  # noqa: B008
    **options: Any,
) -> Report:
    """Measures bundles on a board as `measure` does here, and writes its report here.

    Args:
        host: The board as ssh takes it: `user@board`, or a name in the ssh configuration, which may know port and key.
            It needs Python 3.10 and what pip can reach; no root, and no edgecls.
        bundles: As for `measure`; so are `data`, `reference`, `limit` and all other `options`.
        data: Only those pictures are sent that are measured.
        output: The report's file; its predictions and samples come to stand beside it.
        reference: The bundle that the others are paired with.
        limit: Largest number of pictures.
        keep: Whether what was sent and installed stays there for the next measurement; otherwise nothing stays.
        ssh_config: Read in place of `~/.ssh/config`.
        patience_s: How long a lost connection is waited for.
        progress: Told about the stages, and what the board says.

    Raises:
        InputError: The board cannot be reached or has too little room, or as `measure`.
        UnsupportedError: The board has no suitable Python or cannot install an engine, or as `measure`.
        BundleError: As `measure`.
        EngineError: As `measure`.
    """
    output = Path(output)
    refuse_unwritable(output)
    refuse_overwriting(output, [*bundles, *(file for file in (reference, ssh_config) if file is not None)])
    job = board_job(bundles, data, output, reference, limit, options, progress)
    config = None if ssh_config is None else Path(ssh_config)
    with scratch_folder() as folder:
        connection = Connection(host, config, folder, patience_s, progress)
        try:
            return _measured(connection, job, output, keep, progress)
        finally:
            connection.close()


@dataclass(frozen=True)
class HostReport:
    """The measurement of one of several boards."""

    host: str
    output: Path
    """The report's file: numbered, for a report names the files beside it and is to name no host."""
    report: Report


def measure_on_hosts(
    hosts: Sequence[str],
    *arguments: Any,
    output: Path,
    progress: Progress = SilentProgress(),  # noqa: B008
    **options: Any,
) -> tuple[list[HostReport], list[EdgeclsError]]:
    """Measures on boards one after another, and goes on where one fails.

    Args:
        hosts: The boards.
        arguments: As for `measure_on_host`; so are `options`.
        output: The report's file; of several boards `report-1.json`, `report-2.json`, … in their order.
        progress: Told about the stages and the failures.

    Returns:
        What was measured, and what failed.
    """
    measured, errors, stem = [], [], report_stem(output)
    for number, host in enumerate(hosts, 1):
        place = output if len(hosts) == 1 else output.with_name(f"{stem}-{number}{output.name[len(stem) :]}")
        try:
            report = measure_on_host(host, *arguments, output=place, progress=progress, **options)
        except EdgeclsError as error:
            if len(hosts) > 1:
                progress.note(str(error))
            errors.append(error)
        else:
            measured.append(HostReport(host, place, report))
    return measured, errors


def _measured(connection: Connection, job: BoardJob, output: Path, keep: bool, progress: Progress) -> Report:
    """The whole way."""
    host = connection.host
    plan = connection.ask("plan", job=job.digest, files=job.sizes)
    if plan["state"] == "busy":
        raise _busy(host)
    if plan["state"] != "idle":
        progress.note(f"{host}: going on with the measurement that a lost connection left there")
    try:
        if plan["state"] == "idle":
            _send(connection, job, plan, progress)
            if connection.ask("start", job=job.digest, **job.work)["state"] == "busy":
                raise _busy(host)
        with progress.stage(f"Measuring on {host}"):
            _follow(connection, progress)
        result, files = connection.patiently(lambda: _collected(connection, job))
        report = _accepted(host, job, result, files, output)
        beside = [files.get(place(output).name) for place in (predictions_path, samples_path)]
    except GoneError:
        raise
    except BaseException:
        with contextlib.suppress(EdgeclsError, LostConnectionError):
            _clean(connection, job, keep)
        raise
    try:
        write_report_files(output, files[output.name], *beside)
    except BaseException:
        progress.note(f"{host}: the report is kept there; the same command fetches it")
        raise
    try:
        connection.patiently(lambda: _clean(connection, job, keep))
    except GoneError as error:
        progress.note(f"{host}: what was sent and installed is left there: {error}")
    return report


def _busy(host: str) -> InputError:
    return InputError(f"{host} is measuring something else, and both would be disturbed: wait until that has ended")


def _clean(connection: Connection, job: BoardJob, keep: bool) -> None:
    with connection.call("clean", job=job.digest, keep=keep) as reply:
        connection.answer(reply)


def _send(connection: Connection, job: BoardJob, plan: dict[str, Any], progress: Progress) -> None:
    """Sends what is missing; what a lost connection has brought there counts."""
    host, first_bytes = connection.host, _missing_bytes(job, plan)
    needed_bytes = first_bytes + board.ROOM_BYTES
    if plan["free_bytes"] < needed_bytes:
        raise InputError(
            f"{host} has {plan['free_bytes'] // _MEGABYTE} MB of free disk in its cache folder, and at least "
            f"{needed_bytes // _MEGABYTE} MB are needed for {len(plan['missing'])} files and an environment: make room "
            "there, send fewer pictures with --limit, or set XDG_CACHE_HOME there to a larger disk"
        )
    with progress.stage(f"Sending to {host} (MB)", first_bytes // _MEGABYTE) as advance:
        shown = 0

        def show(done_bytes: int) -> None:
            nonlocal shown
            done = done_bytes // _MEGABYTE
            advance(done - shown)
            shown = done

        def step() -> None:
            with connection.call("plan", job=job.digest, files=job.sizes) as reply:
                now = connection.answer(reply)
            if now["state"] != "idle" or not now["missing"]:
                return
            done_bytes = first_bytes - _missing_bytes(job, now)
            files = [(digest, have, job.sizes[digest]) for digest, have in now["missing"].items()]
            with connection.call("receive", _payload(job, now, done_bytes, show), files=files) as reply:
                if damaged := connection.answer(reply)["damaged"]:
                    raise InputError(
                        f"{len(damaged)} files arrived at {host} with other bytes than they had, the first "
                        f"{_called(job, damaged[0])}: they have changed meanwhile, or its disk is faulty. Try again."
                    )

        connection.patiently(step)


def _missing_bytes(job: BoardJob, plan: dict[str, Any]) -> int:
    return sum(max(0, job.sizes[digest] - have) for digest, have in plan["missing"].items())


def _payload(job: BoardJob, plan: dict[str, Any], done_bytes: int, show: Callable[[int], None]) -> Iterator[bytes]:
    """The missing bytes of the missing files, one after another."""
    for digest, have in plan["missing"].items():
        content, left = job.contents[digest], job.sizes[digest] - have
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
            file.seek(have)
            while left > 0:
                block = file.read(min(left, _MEGABYTE))
                if not block:
                    raise InputError(f"{content!s} has become shorter while it was sent: run it again")
                left -= len(block)
                done_bytes += len(block)
                yield block
                show(done_bytes)


def _called(job: BoardJob, digest: str) -> str:
    content = job.contents[digest]
    return job.work["wheel"][1] if isinstance(content, bytes) else str(content)


def _follow(connection: Connection, progress: Progress) -> None:
    """Tells what the board says until its measurement has ended."""
    offset = 0

    def step() -> None:
        nonlocal offset
        with connection.call("follow", offset=offset) as log:
            while (line := log.readline()).endswith(b"\n"):
                offset += len(line)
                progress.note(f"{connection.host}: {line.decode('utf-8', 'replace').rstrip()}")

    connection.patiently(step)


def _collected(connection: Connection, job: BoardJob) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """How the measurement ended, and its files by name."""
    with connection.call("collect", job=job.digest) as reply:
        answer = connection.answer(reply)
        files = {}
        for name, size in answer.get("files", ()):
            files[name] = reply.read(size)
            if len(files[name]) < size:
                raise LostConnectionError("it ended in the middle of a file")
    return answer["result"], files


def _accepted(host: str, job: BoardJob, result: dict[str, Any] | None, files: dict[str, bytes], output: Path) -> Report:
    """The report, or raises what stands in its place."""
    if result is None:
        raise InputError(
            f"the measurement on {host} ended without a result: it was restarted or stopped, or its disk is full. "
            "Run the same command again."
        )
    if result["step"] != "bench" or output.name not in files:
        raise _failure(host, job, result)
    report = msgspec.json.decode(files[output.name], type=Report)
    if report.dataset.sha256 != job.dataset_sha256:
        raise InputError(f"{host} measured other pictures than were sent: its disk is faulty. Try another one.")
    return report


def _failure(host: str, job: BoardJob, result: dict[str, Any]) -> EdgeclsError:
    """The error of a step that failed on the board."""
    exit_code, lines = result["exit_code"], result["said"].split("\n")
    told = next((line for line in reversed(lines) if line.startswith(("ERROR", "Error"))), " ".join(lines).strip())
    if "No space left on device" in result["said"]:
        return InputError(
            f"the disk of {host} is full ({told}): make room in its cache folder, or set XDG_CACHE_HOME there to a "
            "larger disk"
        )
    if result["step"] == "venv":
        return UnsupportedError(
            f"{host} cannot make a virtual environment: {told}. "
            "On Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3-venv"
        )
    if result["step"] == "install":
        return UnsupportedError(
            f"{host} cannot install edgecls with {job.work['extras']}, of which it lacks something: {told}. "
            "Give it a network connection or a package index (pip.conf), or install the engine for its python3."
        )
    try:
        message = json.loads(result["said"])["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"edgecls bench ended with exit code {exit_code} and said nothing"
        if exit_code == -9:
            message = "edgecls bench was killed, which Linux does when memory runs out"
    kinds = (InputError, UnsupportedError, BundleError, EngineError)
    kind = next((kind for kind in kinds if kind.exit_code == exit_code), EngineError)
    return kind(f"{host}: {message}")
