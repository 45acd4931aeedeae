"""Latency from several launches of fresh processes, all variants of a launch alive together and timed in turns.

On a machine that does other things absolute times drift by tens of percent between launches, while the ratio of two
variants that take turns every quarter of a second holds. So ratios are formed within a round of turns, and their
interval is taken over launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.latency_process import (
    COMMAND,
    Loaded,
    PeakMemory,
    Slice,
    StageSlice,
    Variant,
    WarmUp,
    WorkerProcess,
    load_variant,
)
from edgecls.bench.report import ColdStart, Interval, Latency, LaunchLatency, Memory, Profile, Stages
from edgecls.bench.scratch import scratch_folder
from edgecls.bench.statistics import early_stopping_percentile, mean_interval
from edgecls.runtime.errors import EngineError
from edgecls.runtime.progress import Advance

PROFILES = {
    profile.name: profile
    for profile in (
        # For demonstrations and tests: the milliseconds are not fit to be quoted.
        Profile(name="smoke", launches=3, timed_s=0.5, slice_s=0.25, warm_up_s=0.1, settle_s=0.5, stages_s=0.2),
        Profile(name="quick", launches=3, timed_s=5, slice_s=0.25, warm_up_s=1, settle_s=3, stages_s=0.5, apart_s=2),
        Profile(
            name="standard", launches=5, timed_s=20, slice_s=0.25, warm_up_s=2, settle_s=10, stages_s=2, apart_s=10
        ),
        # What is left of the speed when the device is hot.
        Profile(
            name="sustained", launches=1, timed_s=600, slice_s=0.25, warm_up_s=2, settle_s=10, stages_s=2, apart_s=10
        ),
    )
}

_STANDARD_WARM_UP_S = 2.0
_NOISY_VARIATION = 0.25
_NOISY_LAUNCHES = 0.10
_TIRED = 0.05
_LASTING_S = 60.0
"""Timed seconds of a launch from which on its beginning and its end are compared."""


@dataclass
class LaunchTrace:
    """Everything that one launch of one variant told."""

    process_ms: float
    loaded: Loaded
    warm_up: WarmUp | None = None
    slices: list[NDArray[np.int64]] = field(default_factory=list)
    """Nanoseconds, one array a round."""
    stages: NDArray[np.int64] | None = None
    """`int64 [passes, 4]`, nanoseconds: decode, preprocess, model, top-k."""
    inference_peak_rss_bytes: int | None = None
    peak_rss_bytes: int | None = None

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """All timed inferences."""
        return np.concatenate(self.slices) / 1e6


@dataclass
class Trace:
    """All launches of one variant, up to the first error."""

    launches: list[LaunchTrace] = field(default_factory=list)
    error: str | None = None
    """Why the variant could not be measured to the end."""


def rounds(profile: Profile) -> int:
    """Turns that every variant has in a launch."""
    return max(1, round(profile.timed_s / profile.slice_s))


def time_variants(
    variants: Sequence[Variant],
    pictures: Sequence[Path],
    *,
    profile: Profile,
    threads: int,
    cpus: Sequence[int] | None,
    seed: int,
    advance: Advance = lambda steps: None,
    command: Sequence[str] = COMMAND,
) -> tuple[Trace, ...]:
    """Times all variants; one whose process fails is left out from there on and says why.

    Args:
        variants: What is timed.
        pictures: Picture files for the stages before and after the model.
        profile: How long and how often.
        threads: Threads of one inference.
        cpus: CPUs to pin every process to, or None.
        seed: Of the order of turns.
        advance: Called after each round of turns; there are `launches * rounds(profile)`.
        command: The worker's command line.
    """
    traces = tuple(Trace() for _ in variants)
    rng = np.random.default_rng(seed)
    with scratch_folder() as folder:
        for _ in range(profile.launches):
            order = [int(index) for index in rng.permutation(len(variants))]
            launch = _Launch(variants, traces, order, folder, command)
            launch.run(profile, [str(path.resolve()) for path in pictures], threads, cpus, advance)
    return traces


class _Launch:
    """One process for each variant that has not failed, alive together."""

    def __init__(
        self,
        variants: Sequence[Variant],
        traces: Sequence[Trace],
        order: Sequence[int],
        folder: Path,
        command: Sequence[str],
    ) -> None:
        self._variants, self._traces, self._order = variants, traces, order
        self._folder, self._command = folder, command
        self._processes: dict[int, WorkerProcess] = {}

    def run(
        self, profile: Profile, pictures: Sequence[str], threads: int, cpus: Sequence[int] | None, advance: Advance
    ) -> None:
        with ExitStack() as stack:
            self._each(self._order, lambda index: self._start(stack, index, threads, cpus))
            self._each(self._order, lambda index: self._warm_up(index, profile))
            for turn in range(rounds(profile)):
                first = turn % len(self._order)
                self._each(
                    [*self._order[first:], *self._order[:first]], lambda index: self._slice(index, profile.slice_s)
                )
                advance(1)
            self._each(self._order, lambda index: self._stages(index, profile.stages_s, pictures))

    def _each(self, order: Iterable[int], step: Callable[[int], None]) -> None:
        """Takes a step with every variant that is still healthy."""
        for index in order:
            if self._traces[index].error is None:
                try:
                    step(index)
                except EngineError as error:
                    self._traces[index].error = str(error)

    def _start(self, stack: ExitStack, index: int, threads: int, cpus: Sequence[int] | None) -> None:
        process, loaded = load_variant(
            stack, self._variants[index], self._folder, threads=threads, cpus=cpus, command=self._command
        )
        self._processes[index] = process
        self._traces[index].launches.append(LaunchTrace(process_ms=process.process_ms, loaded=loaded))

    def _warm_up(self, index: int, profile: Profile) -> None:
        self._traces[index].launches[-1].warm_up = self._processes[index].ask(
            WarmUp, "warm_up", profile.settle_s, least_s=profile.warm_up_s, most_s=profile.settle_s
        )

    def _slice(self, index: int, seconds: float) -> None:
        answer = self._processes[index].ask(Slice, "time_slice", seconds, seconds=seconds)
        self._traces[index].launches[-1].slices.append(np.array(answer.samples_ns, dtype=np.int64))

    def _stages(self, index: int, seconds: float, pictures: Sequence[str]) -> None:
        process, launch = self._processes[index], self._traces[index].launches[-1]
        launch.inference_peak_rss_bytes = process.ask(PeakMemory, "peak_memory").peak_rss_bytes
        answer = process.ask(StageSlice, "time_stages", seconds, seconds=seconds, pictures=list(pictures))
        launch.stages = np.array(answer.samples_ns, dtype=np.int64)
        launch.peak_rss_bytes = process.ask(PeakMemory, "peak_memory").peak_rss_bytes


def write_samples(traces: Sequence[Trace], file: IO[bytes] | Path) -> None:
    """Saves every sample, nanoseconds, as compressed `.npz`.

    For run R and launch L: `runR_launchL_ns`, `runR_launchL_round` (the turn in which a sample was taken) and
    `runR_launchL_stages_ns` (`[passes, 4]`: decode, preprocess, model, top-k).
    """
    arrays: dict[str, NDArray[np.int64]] = {}
    for run, trace in enumerate(traces):
        for number, launch in enumerate(trace.launches):
            if launch.slices:
                prefix = f"run{run}_launch{number}"
                arrays[f"{prefix}_ns"] = np.concatenate(launch.slices)
                arrays[f"{prefix}_round"] = np.repeat(
                    np.arange(len(launch.slices)), [len(samples) for samples in launch.slices]
                )
                if launch.stages is not None:
                    arrays[f"{prefix}_stages_ns"] = launch.stages
    np.savez_compressed(file, allow_pickle=False, **arrays)


def summarise_latency(
    trace: Trace, reference: Trace | None, *, profile: Profile, threads: int, cpus: Sequence[int] | None, samples: str
) -> Latency | None:
    """The latency record of a variant, or None where it could not be measured to the end.

    Args:
        trace: Of the variant.
        reference: Of the variant that ratios are taken against; may be the same.
        profile: As measured.
        threads: As measured.
        cpus: As measured.
        samples: Name of the file that `write_samples` wrote.
    """
    if trace.error is not None:
        return None
    against: Sequence[LaunchTrace | None] = [None] * len(trace.launches)
    if reference is not None and reference.error is None:
        against = reference.launches
    launches = tuple(_launch_latency(launch, other) for launch, other in zip(trace.launches, against, strict=True))
    pooled = np.concatenate([launch.samples_ms for launch in trace.launches])
    variation = float(pooled.std() / pooled.mean())
    ratio, ratio_ci95 = _geometric_mean([launch.ratio for launch in launches if launch.ratio is not None])
    if trace is reference:
        ratio_ci95 = (1.0, 1.0)
    return Latency(
        batch=1,
        threads=threads,
        cpus=None if cpus is None else tuple(cpus),
        n=pooled.size,
        p50_ms=float(np.median(pooled)),
        p50_ci95_ms=_geometric_mean([launch.p50_ms for launch in launches])[1],
        p90_ms=early_stopping_percentile(pooled, 0.9),
        p95_ms=early_stopping_percentile(pooled, 0.95),
        p99_ms=early_stopping_percentile(pooled, 0.99),
        p999_ms=early_stopping_percentile(pooled, 0.999),
        mean_ms=float(pooled.mean()),
        variation=variation,
        ratio=ratio,
        ratio_ci95=ratio_ci95,
        launches=launches,
        stages=_stages([launch.stages for launch in trace.launches if launch.stages is not None]),
        warnings=_warnings(profile, launches, variation, _slowdown(trace, profile)),
        samples=samples,
    )


def cold_start(trace: Trace) -> ColdStart | None:
    """Medians over launches, or None where the variant could not be measured to the end."""
    if trace.error is not None:
        return None
    launches = trace.launches
    return ColdStart(
        process_ms=float(np.median([launch.process_ms for launch in launches])),
        import_ms=float(np.median([launch.loaded.import_ms for launch in launches])),
        load_ms=float(np.median([launch.loaded.load_ms for launch in launches])),
        first_inference_ms=float(np.median([launch.loaded.first_inference_ms for launch in launches])),
    )


def peak_memory(trace: Trace) -> Memory | None:
    """Largest over launches, or None where the system does not tell or the variant was not measured to the end."""
    inference = [x.inference_peak_rss_bytes for x in trace.launches if x.inference_peak_rss_bytes is not None]
    whole = [x.peak_rss_bytes for x in trace.launches if x.peak_rss_bytes is not None]
    if trace.error is not None or not inference or not whole:
        return None
    # Linux adds up VmHWM from counters of its CPUs now and then: a later reading may be some pages lower.
    return Memory(inference_peak_rss_bytes=max(inference), peak_rss_bytes=max(*whole, *inference))


def _launch_latency(launch: LaunchTrace, reference: LaunchTrace | None) -> LaunchLatency:
    assert launch.warm_up is not None
    ratio = None
    if reference is not None:
        quotients = [
            math.log(np.median(mine) / np.median(its))
            for mine, its in zip(launch.slices, reference.slices, strict=True)
        ]
        ratio = math.exp(float(np.median(quotients)))
    samples = launch.samples_ms
    return LaunchLatency(
        n=samples.size,
        p50_ms=float(np.median(samples)),
        warm_up_s=launch.warm_up.seconds,
        settled=launch.warm_up.settled,
        ratio=ratio,
    )


def _geometric_mean(values: Sequence[float]) -> tuple[float | None, Interval | None]:
    """And its 95 % interval over launches: what is slowed down is slowed down by a factor, and is never negative."""
    if not values:
        return None, None
    logs = np.log(values)
    interval = mean_interval(logs)
    mean = math.exp(float(logs.mean()))
    return mean, None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _stages(launches: Sequence[NDArray[np.int64]]) -> Stages | None:
    if not launches:
        return None
    passes = np.concatenate(launches) / 1e6
    decode, preprocess, model, top_k = (float(value) for value in np.median(passes, axis=0))
    return Stages(
        n=len(passes),
        decode_ms=decode,
        preprocess_ms=preprocess,
        model_ms=model,
        top_k_ms=top_k,
        total_ms=float(np.median(passes.sum(axis=1))),
    )


def _slowdown(trace: Trace, profile: Profile) -> float:
    """By how much the median rises from the first to the last tenth of a long launch, as a share; the worst launch."""
    if profile.timed_s < _LASTING_S:
        return 0.0
    rises = []
    for launch in trace.launches:
        tenth = max(1, len(launch.slices) // 10)
        first, last = (np.median(np.concatenate(part)) for part in (launch.slices[:tenth], launch.slices[-tenth:]))
        rises.append(float(last / first) - 1)
    return max(rises)


def _warnings(
    profile: Profile, launches: Sequence[LaunchLatency], variation: float, slowdown: float
) -> tuple[str, ...]:
    warnings = []
    if profile.name == "smoke":
        warnings.append("the smoke profile is too short for its milliseconds to be quoted")
    elif profile.warm_up_s < _STANDARD_WARM_UP_S:
        warnings.append(f"the {profile.name} profile warms up for {profile.warm_up_s:g} s, the standard one for 2 s")
    unsettled = sum(not launch.settled for launch in launches)
    if unsettled:
        warnings.append(
            f"medians had not settled after {profile.settle_s:g} s in {unsettled} of {len(launches)} launches"
        )
    if variation > _NOISY_VARIATION:
        warnings.append(f"samples vary by {variation:.0%}: something else used the CPUs")
    if slowdown > _TIRED:
        warnings.append(f"the median rose by {slowdown:.0%} from the first to the last tenth of the time")
    medians = [launch.p50_ms for launch in launches]
    spread = max(medians) / min(medians) - 1
    if spread > _NOISY_LAUNCHES:
        warnings.append(f"medians differ by {spread:.0%} between launches: quote ratios, not milliseconds")
    return tuple(warnings)
