"""Reports as they are compared: with a name, with what lies beside them, and with nothing in them that could harm.

A report may come from anywhere. Its texts are shown, so characters that cannot be seen, or that turn the direction of
what follows, become escapes. Its numbers are drawn, so those that no measurement gives are refused.
"""

from __future__ import annotations

import hashlib
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.report import Report, Run, predictions_path, read_report, report_stem, samples_path
from edgecls.runtime.errors import InputError

_LARGEST = 1e15
_SHORTEST_MS, _LONGEST_MS = 1e-6, 1e9
_SMALLEST_RATIO, _LARGEST_RATIO = 1e-6, 1e6
_MAX_MEMBER_BYTES = 2**28
"""Of one array beside a report: 33 million samples of latency."""
_HASH_CHUNK_BYTES = 1 << 20
_SAME_RATE = 1e-9
_JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian words and many emoji are written."""


@dataclass(frozen=True)
class Answered:
    """Who was right, from `report.predictions.npz`, sorted by class and digest: whatever the pictures are called.

    Attributes:
        sha256: Of each picture, `str [images]`.
        label: Its class, `int32 [images]`; -1 where it has none.
        right: Whether each run gave that class, `bool [runs, images]`.
    """

    sha256: NDArray[np.str_]
    label: NDArray[np.int32]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """A report and what lies beside it.

    Attributes:
        name: Distinct among the reports that were opened together.
        report: What was measured.
        samples_ms: For each run and launch every latency, `float64 [samples]`, from `report.samples.npz`; None where
            that file is not there.
        answered: None where `report.predictions.npz` is not there.
    """

    name: str
    report: Report
    samples_ms: tuple[tuple[NDArray[np.float64], ...], ...] | None
    answered: Answered | None


def open_measured(paths: Sequence[Path]) -> tuple[Measured, ...]:
    """Reads reports and what lies beside them.

    Args:
        paths: The reports; their file names, with the folders' where those alone are not distinct, become names.

    Raises:
        InputError: A file cannot be read, is damaged, or does not belong to its report; the message says which.
    """
    return tuple(
        Measured(visible(name), report, _samples(samples_path(path), report), _answered(predictions_path(path), report))
        for name, path, report in zip(_names(paths), paths, map(read_harmless, paths), strict=True)
    )


def visible(text: str) -> str:
    """The text with every character that cannot be seen written as its escape."""
    return "".join(character if _is_visible(character) else ascii(character)[1:-1] for character in text)


def _is_visible(character: str) -> bool:
    """Whether it is printed, or is a space of any script: of those `isprintable` takes the one of ASCII alone."""
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _names(paths: Sequence[Path]) -> list[str]:
    names = [report_stem(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{report_stem(path)}" for path in paths]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def read_harmless(path: Path) -> Report:
    """Reads a report alone, for what looks at nothing beside it.

    Raises:
        InputError: It cannot be read, or says what no measurement gives: get it again.
    """
    document = _harmless(msgspec.to_builtins(read_report(path)), path)
    report = msgspec.convert(document, type=Report)
    for run in report.runs:
        for what in _impossible(run):
            raise InputError(f"{path}: {what} of {run.name} is nothing that can be measured: get the report again")
    if not report.runs or (report.reference is not None and not 0 <= report.reference.run < len(report.runs)):
        raise InputError(f"{path} lacks the runs that it speaks of: get the report again")
    if report.valid and (broken := [run.name for run in report.runs if not run.valid]):
        raise InputError(f"{path} calls itself valid, and its run {broken[0]} is not: get the report again")
    if report.valid and report.reasons:
        raise InputError(
            f"{path} calls itself valid, and says why it is not ({report.reasons[0]}): get the report again"
        )
    return report


def _harmless(value: Any, path: Path) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, (int, float)) and abs(value) > _LARGEST:
        raise InputError(f"{path} holds the number {value:.3g}, which no measurement gives: get the report again")
    if isinstance(value, Mapping):
        return {visible(key): _harmless(item, path) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(item, path) for item in value]
    return value


def _impossible(run: Run) -> Iterator[str]:
    """Names of figures that later arithmetic could not take."""
    latency, accuracy = run.latency, run.accuracy
    if latency is not None:
        medians = [latency.p50_ms, *(launch.p50_ms for launch in latency.launches)]
        if not all(_SHORTEST_MS < median < _LONGEST_MS for median in medians):
            yield "the latency"
        ratios = [latency.ratio, *(launch.ratio for launch in latency.launches)]
        if not all(ratio is None or _SMALLEST_RATIO < ratio < _LARGEST_RATIO for ratio in ratios):
            yield "the latency ratio"
        if latency.stages is not None and min(msgspec.structs.astuple(latency.stages)) < 0:
            yield "a stage"
    if run.coldstart is not None and min(msgspec.structs.astuple(run.coldstart)) < 0:
        yield "the cold start"
    if accuracy is not None:
        if accuracy.n < 1 or not 0 <= (accuracy.top1 or 0) <= 1:
            yield "the accuracy"
        matrix = accuracy.confusion or ()
        if any(len(row) != len(matrix) or min(row) < 0 for row in matrix):
            yield "the confusion matrix"
        if any(not 0 <= item.correct <= item.n for item in accuracy.per_class or ()):
            yield "a class"


_DAMAGES = (
    *(OSError, ValueError, KeyError, IndexError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error),
    *(RuntimeError, NotImplementedError),  # a member is encrypted, or packed in a way that zipfile does not know
)


@contextmanager
def _beside(path: Path, sha256: str | None) -> Iterator[_Arrays]:
    """Opens the arrays beside a report that names their digest; what is wrong with them is one error."""
    try:
        with open(path, "rb") as file:
            if sha256 is not None and (found := _sha256(file)) != sha256:
                raise ValueError(f"its sha256 is {found[:12]}..., the report names {sha256[:12]}...")
            with zipfile.ZipFile(file) as archive:
                yield _Arrays(archive)
    except _DAMAGES as error:
        raise InputError(
            f"{path} is damaged or does not belong to its report ({type(error).__name__}: {error}): "
            "get it again, or move it away to do without it"
        ) from error


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_HASH_CHUNK_BYTES):
        digest.update(block)
    return digest.hexdigest()


class _Arrays:
    """`numpy.load` without pickles and with a limit on what a member may unpack to."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def __getitem__(self, name: str) -> NDArray[Any]:
        member = self._archive.getinfo(f"{name}.npy")
        if member.file_size > _MAX_MEMBER_BYTES:
            raise ValueError(f"{name} has {member.file_size} bytes")
        with self._archive.open(member) as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _samples(path: Path, report: Report) -> tuple[tuple[NDArray[np.float64], ...], ...] | None:
    if not path.is_file() or all(run.latency is None for run in report.runs):
        return None
    with _beside(path, report.samples_sha256) as arrays:
        return tuple(
            tuple(
                _launch(arrays[f"run{index}_launch{number}_ns"], launch.n)
                for number, launch in enumerate(run.latency.launches if run.latency else ())
            )
            for index, run in enumerate(report.runs)
        )


def _launch(samples_ns: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    if samples_ns.dtype != np.int64 or samples_ns.shape != (n,) or n < 1 or samples_ns.min() <= 0:
        raise ValueError(f"{n} positive samples were expected")
    return samples_ns / 1e6


def _answered(path: Path, report: Report) -> Answered | None:
    accuracies = [run.accuracy for run in report.runs if run.accuracy is not None]
    if not path.is_file() or len(accuracies) < len(report.runs):
        return None
    with _beside(path, report.predictions_sha256) as arrays:
        sha256, label = arrays["sha256"], arrays["label"]
        top1 = [arrays[f"run{index}_top"][:, 0] for index in range(len(report.runs))]
        shape = (accuracies[0].n,)
        if sha256.dtype.kind != "U" or any(array.shape != shape for array in (sha256, label, *top1)):
            raise ValueError(f"the answers of {shape[0]} pictures were expected")
        right = np.stack([(answer == label) & (label >= 0) for answer in top1])
        for accuracy, rate in zip(accuracies, right.mean(axis=1).tolist(), strict=True):
            if accuracy.top1 is not None and abs(rate - accuracy.top1) > _SAME_RATE:
                raise ValueError(f"{rate:.2%} of its answers are right, top-1 in the report is {accuracy.top1:.2%}")
        order = np.lexsort((sha256, label))
        return Answered(sha256[order], label[order], right[:, order])
