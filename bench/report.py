"""The report of a measurement: its JSON, `edgecls.report/1`, and the files that stand beside it.

Rates are 0..1, fields that end in `_pp` are percentage points, and a positive drop is worse. What was not measured is
null, and no number is ever NaN.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec

from edgecls.bench.conditions import Conditions
from edgecls.bench.device import Device
from edgecls.bench.energy import Energy
from edgecls.bench.gate_result import EXIT_CODES, GateResult
from edgecls.bench.metrics import ClassificationMetrics, ClassMetrics
from edgecls.bench.throughput import Throughput
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.bundle import Precision
from edgecls.runtime.cpu import Isa
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import InputError
from edgecls.runtime.preprocess import Preprocess

SCHEMA = "edgecls.report/1"
"""The number grows when a field goes or changes its meaning, and then older reports are converted in `read_report`; new
fields have a default and leave the number as it is."""

Interval = tuple[float, float]
"""Lower and upper end."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often latency is measured."""

    name: str
    launches: int
    """Times that every variant is started afresh."""
    timed_s: float
    """Timed seconds of each variant in each launch."""
    slice_s: float
    """Seconds that one variant is timed before the next has its turn."""
    warm_up_s: float
    """Shortest warm-up of each variant in each launch; at least 10 inferences."""
    settle_s: float
    """The warm-up goes on until medians settle, but not longer than this."""
    stages_s: float
    """Seconds of each variant in each launch that go to the stages from picture file to answer."""
    apart_s: float = 0.5
    """Seconds of each variant in each pass that is apart from latency: energy, and each cell of the throughput."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """What measured, and how it was asked to."""

    name: str
    version: str
    packages: dict[str, str]
    """Python, and the packages that take part in every measurement: name to version."""
    seed: int
    """Of the order in which variants take turns."""
    threads: int
    """Threads of one inference."""
    profile: Profile | None
    """Null where latency was not measured."""


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that were measured on."""

    sha256: str
    """Digest of the image set, after the limit."""
    n: int
    """Pictures in the set, unreadable ones included."""
    n_unreadable: int
    """Those that were tried and could not be read; they stand in the report's reasons."""
    n_folders: int
    """Class folders; 0 for a flat folder."""
    labelled: bool
    limit: int | None
    """Largest number of pictures that was asked for."""
    overlap: int
    """Pictures that a bundle was calibrated with: always 0, other measurements are refused."""


class Reference(msgspec.Struct, frozen=True):
    """The bundle that the others are paired with."""

    sha256: str
    run: int
    """Index in `runs`."""


class ArtifactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that a run measured."""

    sha256: str
    """Of the whole file."""
    size_bytes: int
    name: str
    """As its manifest says."""
    model: str
    target: str
    precision: Precision
    isa: Isa | None
    quantizer: str | None
    checkpoint_sha256: str | None
    graph_sha256: str
    plan_sha256: str | None
    int8_share: float | None
    """Operations that compute on integers, of all in the optimised graph; null where the engine does not tell."""


class CalibrationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures that calibrated a run's bundle."""

    sha256: str
    n: int
    seed: int


class PreprocessRecord(msgspec.Struct, frozen=True):
    """What was done to the pictures."""

    sha256: str
    settings: Preprocess


class ClassAccuracy(ClassMetrics, frozen=True, kw_only=True):
    """One class, also against the reference; what is paired is null without one, and for a class without pictures."""

    b: int | None = None
    """Pictures of the class that only the reference gets right."""
    c: int | None = None
    """Pictures of the class that only this run gets right."""
    drop_pp: float | None = None
    """100 (b - c) / n: of the recall."""
    drop_p: float | None = None
    """Exact one-sided p value of "no drop" (McNemar)."""
    drop_p_holm: float | None = None
    """The same, adjusted for the number of classes (Holm 1979)."""


class Accuracy(ClassificationMetrics, frozen=True, kw_only=True):
    """Answers against the labels and against the reference.

    Without labels, what needs them is null; without a reference, what is paired is null.
    """

    per_class: tuple[ClassAccuracy, ...] | None = None
    """Classes that occur, as label or as answer."""
    predictions: str
    """Name of the file beside the report that holds every answer."""
    b: int | None = None
    """Pictures that only the reference gets right."""
    c: int | None = None
    """Pictures that only this run gets right."""
    drop_pp: float | None = None
    """100 (b - c) / n."""
    ci95_pp: Interval | None = None
    """Two-sided 95 % score interval of the drop (Tango 1998)."""
    upper95_one_sided_pp: float | None = None
    """One-sided 95 % upper bound of the drop (Tango 1998)."""
    mcnemar_mid_p: float | None = None
    """Two-sided, as information: it answers whether there is a drop, not whether it is small."""
    flip_rate: float | None = None
    """(b + c) / n."""
    top1_disagreement: float | None = None
    """Share of pictures whose best class differs from the reference's, right or wrong."""
    kl_mean: float | None = None
    """Kullback-Leibler divergence of the softmax from the reference's, nats, mean over pictures."""
    kl_p99: float | None = None


class LaunchLatency(msgspec.Struct, frozen=True, kw_only=True):
    """One launch of one variant."""

    n: int
    p50_ms: float
    warm_up_s: float
    settled: bool
    """Whether medians had settled when timing began."""
    ratio: float | None
    """Latency against the reference's: the median over rounds of the quotient of the two medians of a round."""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """From the bytes of a picture file to the answer, medians of each stage timed by itself in one pass."""

    n: int
    decode_ms: float
    preprocess_ms: float
    model_ms: float
    top_k_ms: float
    total_ms: float
    """Median of the whole pass, not the sum of the medians."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """One inference of batch 1 on a ready crop, in the session."""

    batch: int
    threads: int
    cpus: tuple[int, ...] | None
    """CPUs that the process was pinned to; null where the system cannot pin."""
    n: int
    p50_ms: float
    p50_ci95_ms: Interval | None
    """Student's t interval over launches, of logarithms."""
    p90_ms: float | None
    """Percentiles are MLPerf LoadGen's early-stopping estimates: upper bounds at 99 % confidence, null below 64, 130,
    662 and 6636 samples."""
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    mean_ms: float
    variation: float
    """Coefficient of variation of the samples."""
    ratio: float | None
    """Against the reference, geometric mean over launches: 0.5 is twice as fast. 1 for the reference itself."""
    ratio_ci95: Interval | None
    """Student's t interval over launches, on logarithms."""
    launches: tuple[LaunchLatency, ...]
    stages: Stages | None
    warnings: tuple[str, ...]
    samples: str
    """Name of the file beside the report that holds every sample."""


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """From nothing to the first answer, medians over launches, with the files in the system's cache."""

    process_ms: float
    """Start of the Python process."""
    import_ms: float
    """Import of `edgecls.runtime`."""
    load_ms: float
    """`runtime.load`, which imports the engine."""
    first_inference_ms: float

    @property
    def total_ms(self) -> float:
        """From the start of the process to the first answer."""
        return self.process_ms + self.import_ms + self.load_ms + self.first_inference_ms


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Peak resident memory of a process that runs nothing but this bundle (VmHWM), largest over launches."""

    inference_peak_rss_bytes: int
    """Up to the last timed inference."""
    peak_rss_bytes: int
    """Decoding and preprocessing included."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on this device."""

    name: str
    """The bundle's file name without its suffix; with the beginning of its digest where two files share a name."""
    role: Literal["candidate", "reference"]
    valid: bool
    reasons: tuple[str, ...]
    """Why the run is not valid."""
    artifact: ArtifactRecord
    engine: EngineInfo
    calibration: CalibrationSummary | None
    preprocess: PreprocessRecord
    accuracy: Accuracy | None
    latency: Latency | None
    coldstart: ColdStart | None
    memory: Memory | None
    throughput: Throughput | None = None
    """Null unless it was asked for."""
    energy: Energy | None = None
    energy_unavailable: str | None = None
    """Why there is no energy; null where it was measured, or latency was not."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """`report.json`."""

    tool: Tool
    valid: bool
    """Whether nothing stands in `reasons` and every run is valid."""
    reasons: tuple[str, ...]
    """Why the report is not valid, as far as it is no single run's matter."""
    device: Device
    conditions: Conditions
    dataset: Dataset
    reference: Reference | None
    runs: tuple[Run, ...]
    predictions_sha256: str | None = None
    """Of the file beside the report; null where there is none, and in reports older than this field."""
    samples_sha256: str | None = None
    """Likewise."""
    gate: GateResult | None = None

    @property
    def exit_code(self) -> int:
        """0, or 4 where the report is written but invalid."""
        return 0 if self.valid else EXIT_CODES["invalid"]

    def to_json(self) -> bytes:
        """What stands in the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Writes a report; the file is complete or is not there.

    Raises:
        InputError: The file cannot be written; choose another `-o`.
    """
    with atomic_file(path) as file:
        file.write(report.to_json())


def write_report_files(
    path: Path, report: bytes, predictions: bytes | None = None, samples: bytes | None = None
) -> None:
    """Writes a report and what stands beside it, all aside before the first takes its name.

    A process that dies between two renames leaves a report, old or new, without the two; never with another's.

    Args:
        path: The report's file.
        report: Its JSON.
        predictions: The answers as `.npz`, where there are any.
        samples: The latency samples as `.npz`, where there are any.

    Raises:
        InputError: A file cannot be written; choose another `-o`.
    """
    beside = {predictions_path(path): predictions, samples_path(path): samples}
    with ExitStack() as stack:
        files = []
        for place, content in beside.items():
            if content is not None:
                files.append(stack.enter_context(atomic_file(place)))
                files[-1].write(content)
        files.append(stack.enter_context(atomic_file(path)))
        files[-1].write(report)
        for file in files:  # a full disk is met before anything is gone
            file.flush()
        # What an earlier measurement of this name left would be taken for this one's.
        for stale in beside:
            stale.unlink(missing_ok=True)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads a report.

    Raises:
        InputError: The file cannot be read or is no report of this schema; name a file that `edgecls bench` wrote.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Report)
    except OSError as error:
        raise InputError(f"cannot read the report {path}: {error.strerror or error}. Check the path.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no report of schema {SCHEMA}: {error}. "
            "Give a file that `edgecls bench` of this version or an older one wrote."
        ) from error


def report_stem(report: Path) -> str:
    """The file's name without `.json`; of any other name, such as `lite-1.5`, the whole."""
    return report.stem if report.suffix == ".json" else report.name


def predictions_path(report: Path) -> Path:
    """Where the answers stand: `report.predictions.npz` beside `report.json`."""
    return report.with_name(f"{report_stem(report)}.predictions.npz")


def samples_path(report: Path) -> Path:
    """Where the latency samples stand: `report.samples.npz` beside `report.json`."""
    return report.with_name(f"{report_stem(report)}.samples.npz")
