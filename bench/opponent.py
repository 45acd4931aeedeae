"""What a run is compared with: the reference of its own report, or a run of an earlier one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.compare import latency_differences, latency_ratio, paired_answers
from edgecls.bench.measured import Measured
from edgecls.bench.report import Accuracy, ClassAccuracy, Interval, Latency, Report, Run
from edgecls.bench.statistics import mean_interval
from edgecls.runtime.errors import InputError


@dataclass(frozen=True)
class Counts:
    """What one drop is judged by.

    Attributes:
        b: Pictures that only the other gets right.
        c: Pictures that only the judged run gets right.
        n: All pictures.
        accuracy: Of the other, 0..1; None where the report does not tell.
    """

    b: int
    c: int
    n: int
    accuracy: float | None

    def __post_init__(self) -> None:
        if min(self.b, self.c) < 0 or not 1 <= self.n >= self.b + self.c:
            raise InputError(f"b={self.b}, c={self.c} of {self.n} pictures cannot be: get the report again")


class Opponent(Protocol):
    """What a run is compared with."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def in_turns(self) -> bool:
        """Whether the two latencies were measured in turns, so that a busy machine slows both."""
        ...

    def counts(self, label: ClassAccuracy | None) -> Counts:
        """Of all pictures, or of one class's."""
        ...

    def ratio(self, confidence: float) -> tuple[float, Interval | None]:
        """Latency of the run against the opponent's, and its two-sided interval."""
        ...


def opponent_of(measured: Measured, index: int, baseline: Measured | None) -> Opponent:
    """What a run is compared with.

    Args:
        measured: The report that is judged.
        index: Of the run.
        baseline: The earlier report, or None: the report's own reference.

    Raises:
        InputError: The baseline has neither a run of that name nor a single one; the message lists those it has.
    """
    if baseline is not None:
        return _Earlier(measured, index, baseline, _counterpart(baseline.report, measured.report.runs[index].name))
    reference = measured.report.reference
    assert reference is not None
    return _Reference(measured.report.runs[index], measured.report.runs[reference.run])


def _counterpart(baseline: Report, name: str) -> int:
    """Index of the baseline's run of that name, or of its only run."""
    names = [run.name for run in baseline.runs]
    if name in names:
        return names.index(name)
    candidates = [index for index, run in enumerate(baseline.runs) if run.role != "reference"]
    if len(candidates) != 1:
        raise InputError(
            f"the baseline has no run {name!r} but {', '.join(names)}: measure it with a bundle of that file name"
        )
    return candidates[0]


@dataclass(frozen=True)
class _Reference:
    """The reference of the same report: the bundles saw the same pictures and took turns."""

    run: Run
    reference: Run

    @property
    def name(self) -> str:
        return self.reference.name

    @property
    def in_turns(self) -> bool:
        return True

    def counts(self, label: ClassAccuracy | None) -> Counts:
        accuracy = measured_accuracy(self.run)
        own = accuracy if label is None else label
        if own.b is None or own.c is None:
            raise InputError(
                f"{self.run.name}: the pictures had no labels, so there is no drop to judge: "
                "measure again on a folder with one sub-folder a class"
                if label is None
                else f"{self.run.name}: the report does not tell what class {label.label!r} lost: measure again"
            )
        right = accuracy.top1 if label is None else label.correct / label.n
        return Counts(own.b, own.c, own.n, None if right is None else right + (own.b - own.c) / own.n)

    def ratio(self, confidence: float) -> tuple[float, Interval | None]:
        latency = self.run.latency
        if latency is None or latency.ratio is None:
            raise InputError(
                f"{self.run.name}: the latency ratio was not measured: measure again without `--no-latency`"
            )
        logs = np.log([launch.ratio for launch in latency.launches if launch.ratio is not None])
        interval = mean_interval(logs, confidence)
        return latency.ratio, None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


@dataclass(frozen=True)
class _Earlier:
    """A run of an earlier report: paired by the predictions beside both, and the bundles did not take turns."""

    measured: Measured
    index: int
    baseline: Measured
    earlier: int

    @property
    def name(self) -> str:
        return f"{self._before.name} ({self.baseline.name})"

    @property
    def in_turns(self) -> bool:
        return False

    @property
    def _now(self) -> Run:
        return self.measured.report.runs[self.index]

    @property
    def _before(self) -> Run:
        return self.baseline.report.runs[self.earlier]

    def counts(self, label: ClassAccuracy | None) -> Counts:
        before, now = self._rights()
        if label is not None:
            assert self.measured.answered is not None
            mask = self.measured.answered.label == label.index
            before, now = before[mask], now[mask]
        return Counts(int(np.sum(before & ~now)), int(np.sum(now & ~before)), len(now), float(np.mean(before)))

    def _rights(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        earlier, here = self.baseline.report.dataset, self.measured.report.dataset
        if earlier.sha256 != here.sha256:
            raise InputError(
                "no drop against the baseline: the field dataset.sha256 differs "
                f"({earlier.sha256[:12]}, {earlier.n} pictures | {here.sha256[:12]}, {here.n}): "
                "measure both on the same pictures"
            )
        if not here.labelled:
            raise InputError("no drop against the baseline: the pictures had no labels")
        for item, run in ((self.baseline, self._before), (self.measured, self._now)):
            if run.accuracy is None:
                raise InputError(
                    f"no drop against the baseline: the accuracy of {run.name} was not measured in {item.name}: "
                    "measure again without `--no-accuracy`"
                )
        rights = paired_answers(self.baseline, self.earlier, self.measured, self.index)
        if rights is None:
            raise InputError(
                f"no drop against the baseline: the predictions of the same pictures (NAME.predictions.npz) do not "
                f"lie beside both {self.baseline.name} and {self.measured.name}: put them there"
            )
        return rights

    def ratio(self, confidence: float) -> tuple[float, Interval | None]:
        differences = latency_differences(self.baseline.report, self._before, self.measured.report, self._now)
        if differences:
            raise InputError(
                f"no latency ratio against the baseline, for these differ: {'; '.join(map(str, differences))}: "
                "measure under the same conditions, or leave out --max-latency-ratio"
            )
        return latency_ratio(_latency(self._before), _latency(self._now), confidence)


def measured_accuracy(run: Run) -> Accuracy:
    """The accuracy of a run.

    Raises:
        InputError: It was not measured.
    """
    if run.accuracy is None:
        raise InputError(f"{run.name}: accuracy was not measured: measure again without `--no-accuracy`")
    return run.accuracy


def _latency(run: Run) -> Latency:
    if run.latency is None:
        raise InputError(f"{run.name}: latency was not measured: measure again without `--no-latency`")
    return run.latency
