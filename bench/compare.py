"""Reports side by side: which of their figures may be compared, and what the comparison gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.device import Device
from edgecls.bench.measured import Measured
from edgecls.bench.report import Interval, Latency, Report, Run
from edgecls.bench.statistics import confidence_interval, student_t_quantile
from edgecls.bench.throughput import Throughput
from edgecls.runtime.bundle import Precision

SCHEMA = "edgecls.comparison/1"


class ComparabilityKey(msgspec.Struct, frozen=True, kw_only=True):
    """What two latencies of different reports must share before one may be divided by the other.

    Within one report variants took turns on one machine, and the report's own ratio stands whatever their engines.
    """

    device: str
    """Model, processor, instruction set and usable cores."""
    engine: str
    """Name, version and execution provider."""
    threads: int
    gpu: str | None
    """With its driver and CUDA; null where the engine uses none, and in reports of earlier versions."""
    pinned_cores: str | None
    """`0, 1`; null where latency was not measured or the system cannot pin."""
    power_mode: str | None
    """A Jetson's power mode and the frequency governors before the measurement; null where the system does not tell."""
    input_shape: str
    """`1 × 224 × 224 × 3`."""
    profile: str | None
    """Name, launches and seconds; null where latency was not measured."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one report; what was not measured is null."""

    report: str
    """Name of the report."""
    name: str
    """Name of the run."""
    role: Literal["candidate", "reference"]
    valid: bool
    """Whether the run and its report are."""
    key: ComparabilityKey
    sha256: str
    """Of the bundle."""
    target: str
    precision: Precision
    size_bytes: int
    n: int | None
    """Pictures that were classified."""
    top1: float | None
    top1_ci95: Interval | None
    """Wilson's score interval."""
    drop_pp: float | None
    """Against the report's own reference."""
    ci95_pp: Interval | None
    p50_ms: float | None
    p50_ci95_ms: Interval | None
    p99_ms: float | None
    ratio: float | None
    """Latency against the report's own reference."""
    ratio_ci95: Interval | None
    coldstart_ms: float | None
    """From the start of the process to the first answer."""
    peak_rss_bytes: int | None
    mj_per_inference: float | None = None
    energy_scope: str | None = None
    """What the meter is and covers: `RAPL, package-0`."""
    throughput: Throughput | None = None


class Difference(msgspec.Struct, frozen=True):
    """A field of the comparability key."""

    field: str
    first: str | None
    """In the first report."""
    here: str | None

    def __str__(self) -> str:
        return f"{self.field.replace('_', ' ')} ({self.first or 'unknown'} | {self.here or 'unknown'})"


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a later report against one of the first report.

    That is the run of the same name; where there is none, the first report's reference, and without one its first run.
    """

    report: str
    name: str
    against: str
    """Name of the first report's run."""
    same_bundle: bool
    differences: tuple[Difference, ...]
    """Where there are any, the latencies stand side by side and there is no ratio."""
    first_p50_ms: float | None
    p50_ms: float | None
    ratio: float | None
    """p50 here / p50 in the first report, geometric means over launches."""
    ratio_ci95: Interval | None
    """Welch's t interval over launches, on logarithms, with the fewer launches' degrees of freedom."""
    drop_pp: float | None
    """Top-1 of the first report minus top-1 here, on the same pictures."""
    ci95_pp: Interval | None
    """Paired score interval (Tango 1998); null unless both reports have their predictions beside them."""
    notes: tuple[str, ...]
    """Why there is no ratio or no drop, a sentence each."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of itself."""

    name: str
    valid: bool
    reasons: tuple[str, ...]
    device: str
    dataset_sha256: str
    gate: Literal["pass", "fail", "inconclusive", "invalid"] | None
    """Null where no gate has judged the report."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """Reports side by side."""

    reports: tuple[Judged, ...]
    variants: tuple[Variant, ...]
    contrasts: tuple[Contrast, ...]


def compare(measured: Sequence[Measured]) -> Comparison:
    """Puts reports side by side; the first is what the others are compared with."""
    first, *others = measured
    return Comparison(
        reports=tuple(_judged(item) for item in measured),
        variants=tuple(_variant(item, run) for item in measured for run in item.report.runs),
        contrasts=tuple(
            _contrast(first, _counterpart(first.report, run.name), item, index)
            for item in others
            for index, run in enumerate(item.report.runs)
        ),
    )


def device_text(device: Device) -> str:
    """A device in one line."""
    parts = [device.model or device.soc or device.kind, device.cpu, device.isa or device.architecture]
    cores = f"{device.cores_usable} of {device.cores or '?'} cores"
    return ", ".join([*filter(None, parts), cores])


def _counterpart(first: Report, name: str) -> int:
    """Index of the first report's run that a run of this name is compared with."""
    fallback = first.reference.run if first.reference else 0
    return next((index for index, run in enumerate(first.runs) if run.name == name), fallback)


def _judged(measured: Measured) -> Judged:
    report = measured.report
    return Judged(
        name=measured.name,
        valid=report.valid,
        reasons=(*report.reasons, *(f"{run.name}: {reason}" for run in report.runs for reason in run.reasons)),
        device=device_text(report.device),
        dataset_sha256=report.dataset.sha256,
        gate=report.gate.verdict if report.gate else None,
    )


def _key(report: Report, run: Run) -> ComparabilityKey:
    profile, state = report.tool.profile, report.conditions.before
    side, batch = run.preprocess.settings.crop_px, run.latency.batch if run.latency else 1
    cpus = (run.latency.cpus if run.latency else None) or ()
    return ComparabilityKey(
        device=device_text(report.device),
        engine=f"{run.engine.name} {run.engine.version}, {run.engine.provider_used}",
        threads=run.engine.threads,
        gpu=run.engine.device,
        pinned_cores=", ".join(map(str, cpus)) or None,
        power_mode=", ".join(filter(None, [state.power_mode, *(state.governors or ())])) or None,
        input_shape=f"{batch} × {side} × {side} × 3",
        profile=f"{profile.name}, {profile.launches} × {profile.timed_s:g} s" if profile else None,
    )


def _variant(measured: Measured, run: Run) -> Variant:
    accuracy, latency, start = run.accuracy, run.latency, run.coldstart
    top1 = _top1(run)
    return Variant(
        report=measured.name,
        name=run.name,
        role=run.role,
        valid=run.valid and not measured.report.reasons,
        key=_key(measured.report, run),
        sha256=run.artifact.sha256,
        target=run.artifact.target,
        precision=run.artifact.precision,
        size_bytes=run.artifact.size_bytes,
        n=accuracy.n if accuracy else None,
        top1=top1,
        top1_ci95=None if accuracy is None or top1 is None else _wilson(top1, accuracy.n),
        drop_pp=accuracy.drop_pp if accuracy else None,
        ci95_pp=accuracy.ci95_pp if accuracy else None,
        p50_ms=latency.p50_ms if latency else None,
        p50_ci95_ms=latency.p50_ci95_ms if latency else None,
        p99_ms=latency.p99_ms if latency else None,
        ratio=latency.ratio if latency else None,
        ratio_ci95=latency.ratio_ci95 if latency else None,
        coldstart_ms=start.total_ms if start else None,
        peak_rss_bytes=run.memory.peak_rss_bytes if run.memory else None,
        mj_per_inference=run.energy.mj_per_inference if run.energy else None,
        energy_scope=f"{run.energy.source}, {run.energy.scope}" if run.energy else None,
        throughput=run.throughput,
    )


def _top1(run: Run) -> float | None:
    return run.accuracy.top1 if run.accuracy else None


def _wilson(rate: float, n: int) -> Interval:
    """Two-sided 95 % score interval of a rate."""
    z = NormalDist().inv_cdf(0.975)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _contrast(first: Measured, first_run: int, here: Measured, here_run: int) -> Contrast:
    earlier, later = first.report.runs[first_run], here.report.runs[here_run]
    differences = latency_differences(first.report, earlier, here.report, later)
    ratio = ratio_ci95 = drop_pp = ci95_pp = None
    unfit = [item.name for item in (first, here) if not item.report.valid]
    doubt = f"{' and '.join(unfit)} {'is' if len(unfit) == 1 else 'are'} not valid"
    notes = []
    if earlier.latency is None or later.latency is None:
        notes.append("no ratio: latency was not measured in both reports")
    elif differences:
        notes.append("no ratio, for these differ: " + "; ".join(map(str, differences)))
    elif unfit:
        notes.append(f"no ratio: {doubt}")
    else:
        ratio, ratio_ci95 = latency_ratio(earlier.latency, later.latency)
    before, after = earlier.accuracy, later.accuracy
    if first.report.dataset.sha256 != here.report.dataset.sha256:
        notes.append("no drop: the pictures are not the same")
    elif before is None or after is None or before.top1 is None or after.top1 is None:
        notes.append("no drop: top-1 was not measured in both reports")
    elif unfit:
        notes.append(f"no drop: {doubt}")
    elif before.n != after.n:
        notes.append(f"no drop: {before.n} of the pictures could be read in {first.name}, {after.n} in {here.name}")
    else:
        drop_pp = 100 * (before.top1 - after.top1)
        ci95_pp = _drop_interval(first, first_run, here, here_run)
        if ci95_pp is None:
            notes.append("no interval of the drop: the same predictions do not lie beside both reports")
    return Contrast(
        report=here.name,
        name=later.name,
        against=earlier.name,
        same_bundle=earlier.artifact.sha256 == later.artifact.sha256,
        differences=differences,
        first_p50_ms=earlier.latency.p50_ms if earlier.latency else None,
        p50_ms=later.latency.p50_ms if later.latency else None,
        ratio=ratio,
        ratio_ci95=ratio_ci95,
        drop_pp=drop_pp,
        ci95_pp=ci95_pp,
        notes=tuple(notes),
    )


def latency_differences(first: Report, first_run: Run, here: Report, here_run: Run) -> tuple[Difference, ...]:
    """What forbids to divide the latencies of two runs of different reports."""
    one, other = (msgspec.structs.asdict(_key(report, run)) for report, run in ((first, first_run), (here, here_run)))
    return tuple(
        Difference(field, *(None if side[field] is None else str(side[field]) for side in (one, other)))
        for field in one
        if one[field] != other[field]
    )


def latency_ratio(first: Latency, here: Latency, confidence: float = 0.95) -> tuple[float, Interval | None]:
    """The ratio of two measurements that did not take turns, and its interval over launches.

    That is Welch's t interval on logarithms with the fewer launches' degrees of freedom; None for a single launch.
    """
    logs = [np.log([launch.p50_ms for launch in latency.launches] or [latency.p50_ms]) for latency in (first, here)]
    ratio = float(logs[1].mean() - logs[0].mean())
    launches = min(values.size for values in logs)
    if launches < 2:
        return math.exp(ratio), None
    quantile = student_t_quantile((1 + confidence) / 2, launches - 1)
    half = quantile * math.sqrt(sum(float(x.var(ddof=1)) / x.size for x in logs))
    return math.exp(ratio), (math.exp(ratio - half), math.exp(ratio + half))


def _drop_interval(first: Measured, first_run: int, here: Measured, here_run: int) -> Interval | None:
    """Paired picture by picture, percentage points; None unless both reports have their answers beside them."""
    rights = paired_answers(first, first_run, here, here_run)
    if rights is None:
        return None
    was, is_ = rights
    low, high = confidence_interval(int(np.sum(was & ~is_)), int(np.sum(is_ & ~was)), len(was))
    return 100 * low, 100 * high


def paired_answers(
    first: Measured, first_run: int, here: Measured, here_run: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which pictures each of two runs gave their class, `bool [images]`; None unless both answered the same ones."""
    one, other = first.answered, here.answered
    if one is None or other is None:
        return None
    if not (np.array_equal(one.sha256, other.sha256) and np.array_equal(one.label, other.label)):
        return None
    return one.right[first_run], other.right[here_run]
