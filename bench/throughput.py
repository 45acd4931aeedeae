"""Offline throughput: how many pictures a second where they wait in batches, over batch sizes and threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from edgecls.bench.latency_process import COMMAND, Batches, Variant, WorkerProcess, load_variant
from edgecls.bench.scratch import scratch_folder
from edgecls.runtime.errors import EngineError
from edgecls.runtime.progress import Advance

BATCHES = (1, 8, 32)
_TURNS = 3


class BatchThroughput(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size with one number of threads."""

    batch: int
    threads: int
    images: int
    """In all turns."""
    images_per_s: float
    """Median over turns."""


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Ready crops to logits, batches one after another in one process."""

    cells: tuple[BatchThroughput, ...]
    error: str | None
    """Why there are no more cells; null where there are all."""

    @property
    def best(self) -> BatchThroughput | None:
        """The fastest."""
        return max(self.cells, key=lambda cell: cell.images_per_s, default=None)


def thread_counts(threads: int) -> tuple[int, ...]:
    """1, 2, 4 … and `threads` itself."""
    powers = [1 << exponent for exponent in range(threads.bit_length())]
    return tuple(sorted({*powers, threads}))


def throughput_steps(threads: int) -> int:
    """How often `measure_throughput` calls `advance`."""
    return len(thread_counts(threads)) * len(BATCHES)


def measure_throughput(
    variants: Sequence[Variant],
    *,
    seconds: float,
    threads: int,
    pick_cpus: Callable[[int], Sequence[int] | None],
    advance: Advance = lambda steps: None,
    command: Sequence[str] = COMMAND,
) -> tuple[Throughput, ...]:
    """Measures all variants in turns; one that fails is left out from there on and says why.

    Args:
        variants: What is measured.
        seconds: Of each variant with each batch size and number of threads, in three turns.
        threads: Largest number of threads.
        pick_cpus: Returns the CPUs to pin a process of so many threads to, or None.
        advance: Called `throughput_steps` times.
        command: The worker's command line.
    """
    cells: list[list[BatchThroughput]] = [[] for _ in variants]
    errors: list[str | None] = [None] * len(variants)
    with scratch_folder() as folder:
        for count in thread_counts(threads):
            with ExitStack() as stack:
                processes = _start(stack, variants, errors, folder, count, pick_cpus(count), command)
                for batch in BATCHES:
                    turns = _time_batch(processes, errors, batch, seconds / _TURNS)
                    for index, answers in turns.items():
                        cells[index].append(_cell(batch, count, answers))
                    advance(1)
    return tuple(Throughput(cells=tuple(own), error=error) for own, error in zip(cells, errors, strict=True))


def _start(
    stack: ExitStack,
    variants: Sequence[Variant],
    errors: list[str | None],
    folder: Path,
    threads: int,
    cpus: Sequence[int] | None,
    command: Sequence[str],
) -> dict[int, WorkerProcess]:
    processes = {}
    for index, variant in enumerate(variants):
        if errors[index] is None:
            try:
                processes[index], _ = load_variant(stack, variant, folder, threads=threads, cpus=cpus, command=command)
            except EngineError as error:
                errors[index] = str(error)
    return processes


def _time_batch(
    processes: dict[int, WorkerProcess], errors: list[str | None], batch: int, seconds: float
) -> dict[int, list[Batches]]:
    """Answers of the variants that came through all turns."""
    answers: dict[int, list[Batches]] = {}
    for _ in range(_TURNS):
        for index, process in processes.items():
            if errors[index] is None:
                try:
                    answer = process.ask(Batches, "run", seconds, seconds=seconds, batch=batch)
                except EngineError as error:
                    errors[index] = str(error)
                    answers.pop(index, None)
                else:
                    answers.setdefault(index, []).append(answer)
    return answers


def _cell(batch: int, threads: int, turns: Sequence[Batches]) -> BatchThroughput:
    return BatchThroughput(
        batch=batch,
        threads=threads,
        images=sum(turn.images for turn in turns),
        images_per_s=float(np.median([turn.images / turn.seconds for turn in turns])),
    )
