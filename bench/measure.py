"""The whole measurement: bundles and pictures go in, a report comes out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.accuracy import Answers, Unreadable, classify_images, nothing_readable, summarise
from edgecls.bench.device import conditions, device, pick_cpus, snapshot, throttled
from edgecls.bench.latency import (
    PROFILES,
    Trace,
    Variant,
    cold_start,
    peak_memory,
    rounds,
    summarise_latency,
    time_variants,
    write_samples,
)
from edgecls.bench.report import (
    Dataset,
    Profile,
    Reference,
    Report,
    Run,
    Tool,
    predictions_path,
    samples_path,
)
from edgecls.bench.subject import Subject, common_labels, open_subjects, refuse_overlap
from edgecls.runtime.atomic_file import atomic_file, refuse_unwritable
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.progress import Progress, SilentProgress
from edgecls.runtime.session import Session, load

_LATENCY_PICTURES = 8
"""Real pictures that take turns in the latency measurement: enough that no branch predictor learns one by heart."""


def measure(
    bundles: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    profile: Literal["smoke", "quick", "standard"] | Profile = "quick",
    latency: bool = True,
    accuracy: bool = True,
    limit: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = SilentProgress(),  # noqa: B008
) -> Report:
    """Measures bundles on this device and writes the report, with its predictions and samples beside it.

    Args:
        bundles: The bundles, in the order of the report's runs; of two with the same content the first counts.
        data: Folder of pictures, with class sub-folders or flat.
        output: The report's file; `report.json` brings `report.predictions.npz` and `report.samples.npz`.
        reference: The bundle that the others are paired with; appended to the runs if it is not among them.
        profile: How long latency is measured.
        latency: Whether to measure latency, cold start and memory.
        accuracy: Whether to measure accuracy.
        limit: Largest number of pictures, taken by content hash and spread over the classes.
        threads: Threads of one inference; by default the CPUs that this process may use.
        seed: Of the order in which variants take turns.
        progress: Told about the stages.

    Raises:
        InputError: The options, the bundles or the pictures do not fit together; the message says which and what to
            do. A picture that cannot be read among good ones is no error: it makes the report invalid.
        BundleError: A bundle is damaged: get it again.
        MissingExtraError: A bundle's engine is not installed: install the extra that the message names.
        EngineError: An engine fails on its bundle.
    """
    threads = cpu_count() if threads is None else threads
    output, settings = Path(output), _profile(profile)
    _check_options(latency or accuracy, limit, threads, output)
    subjects, reference_run = open_subjects(bundles, reference, progress)
    labels = common_labels(subjects)
    images = ImageSet.from_folder(data, labels, tolerant=True)
    if limit is not None:
        images = images.take(limit)
    refuse_overlap(subjects, images)
    before = snapshot()
    with ExitStack() as stack:
        # Opened even where only latency is measured: what cannot be loaded is told before anything is timed.
        sessions = [stack.enter_context(load(subject.bundle, threads=threads)) for subject in subjects]
        engines = [session.engine_info for session in sessions]
        answers = _classify(sessions, images, reference_run, progress) if accuracy else None
    unreadable = answers.unreadable if answers else ()
    bench = None
    if latency:
        bench = _LatencyBench(subjects, settings, threads, seed)
        unreadable = (*unreadable, *bench.run(images, unreadable, progress))
    after = snapshot()
    runs = tuple(
        _run(index, subject, engines[index], answers, bench, reference_run, labels, output)
        for index, subject in enumerate(subjects)
    )
    reasons = [f"cannot read {path}: {why}" for path, why in images.missing]
    reasons += [f"cannot read {image.path}: {why}" for image, why in unreadable]
    if bench is not None and throttled(before, after):
        reasons.append("the CPUs were slowed for heat while measuring: cool the device and measure again")
    report = Report(
        tool=_tool(seed, threads, bench.profile if bench else None),
        valid=not reasons and all(run.valid for run in runs),
        reasons=tuple(reasons),
        device=device(),
        conditions=conditions(before, after, cpu_count()),
        dataset=_dataset(images, len(unreadable), limit),
        reference=None if reference_run is None else Reference(subjects[reference_run].bundle.sha256, reference_run),
        runs=runs,
    )
    _write(report, output, answers, len(labels), bench)
    return report


def _profile(profile: str | Profile) -> Profile:
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise InputError(f"no profile is called {profile!r}: choose {', '.join(PROFILES)}")
    return PROFILES[profile]


def _check_options(anything: bool, limit: int | None, threads: int, output: Path) -> None:
    if not anything:
        raise InputError("nothing to measure: leave out `--no-latency` or `--no-accuracy`")
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} pictures leaves nothing to measure: give at least 1")
    if threads < 1:
        raise InputError(f"{threads} threads cannot run anything: give at least 1")
    if not output.resolve().parent.is_dir():
        raise InputError(f"the folder of {output} does not exist: create it or choose another `-o`")
    refuse_unwritable(output)


def _classify(sessions: Sequence[Session], images: ImageSet, reference_run: int | None, progress: Progress) -> Answers:
    with progress.stage("Measuring accuracy", len(images.images)) as advance:
        return classify_images(sessions, images, reference_run, advance)


class _LatencyBench:
    """The latency part of a measurement."""

    traces: tuple[Trace, ...]

    def __init__(self, subjects: Sequence[Subject], profile: Profile, threads: int, seed: int) -> None:
        self.profile, self.threads = profile, threads
        self.cpus = pick_cpus(threads)
        self._subjects, self._seed = subjects, seed

    def run(self, images: ImageSet, unreadable: Sequence[Unreadable], progress: Progress) -> tuple[Unreadable, ...]:
        """Times all subjects on a few of the pictures; returns those that turned out to be unreadable."""
        crops, pictures, skipped = _latency_pictures(self._subjects, images, unreadable)
        variants = [
            Variant(subject.name, Path(subject.bundle.path), subject.bundle.sha256, crop)
            for subject, crop in zip(self._subjects, crops, strict=True)
        ]
        with progress.stage("Measuring latency", self.profile.launches * rounds(self.profile)) as advance:
            self.traces = time_variants(
                variants,
                pictures,
                profile=self.profile,
                threads=self.threads,
                cpus=self.cpus,
                seed=self._seed,
                advance=advance,
            )
        return skipped


def _latency_pictures(
    subjects: Sequence[Subject], images: ImageSet, unreadable: Sequence[Unreadable]
) -> tuple[list[NDArray[np.uint8]], list[Path], tuple[Unreadable, ...]]:
    """A few pictures by content hash, as files and as each subject's crops `uint8 [pictures, crop, crop, 3]`."""
    known = {image.path for image, _ in unreadable}
    crops: list[list[NDArray[np.uint8]]] = [[] for _ in subjects]
    pictures: list[Path] = []
    skipped: list[Unreadable] = []
    for image in sorted(images.images, key=lambda image: image.sha256):
        if len(pictures) == _LATENCY_PICTURES:
            break
        if image.path in known:
            continue
        path = images.root / image.path
        try:
            pixels = [subject.bundle.manifest.preprocess.pixels(path) for subject in subjects]
        except (InputError, OSError) as error:
            skipped.append((image, str(error)))
            continue
        pictures.append(path)
        for own, crop in zip(crops, pixels, strict=True):
            own.append(crop)
    if not pictures:
        raise nothing_readable(images, [*unreadable, *skipped])
    return [np.stack(own) for own in crops], pictures, tuple(skipped)


def _run(
    index: int,
    subject: Subject,
    engine: EngineInfo,
    answers: Answers | None,
    bench: _LatencyBench | None,
    reference_run: int | None,
    labels: Labels,
    output: Path,
) -> Run:
    """The record of one run."""
    reasons = []
    if engine.provider_used != engine.provider_requested:
        reasons.append(f"the engine fell back from {engine.provider_requested} to {engine.provider_used}")
    if answers is not None and answers.not_finite(index):
        reasons.append(f"{answers.not_finite(index)} pictures gave logits that are not finite numbers")
    trace = bench.traces[index] if bench else None
    if trace is not None and trace.error is not None:
        reasons.append(trace.error)
    timed = None
    if bench is not None and trace is not None:
        timed = summarise_latency(
            trace,
            None if reference_run is None else bench.traces[reference_run],
            profile=bench.profile,
            threads=bench.threads,
            cpus=bench.cpus,
            samples=samples_path(output).name,
        )
    return Run(
        name=subject.name,
        role="reference" if index == reference_run else "candidate",
        valid=not reasons,
        reasons=tuple(reasons),
        artifact=subject.artifact,
        engine=engine,
        calibration=subject.calibration,
        preprocess=subject.preprocess,
        accuracy=None
        if answers is None
        else summarise(answers, index, reference_run, labels, predictions_path(output).name),
        latency=timed,
        coldstart=None if trace is None else cold_start(trace),
        memory=None if trace is None else peak_memory(trace),
    )


def _tool(seed: int, threads: int, profile: Profile | None) -> Tool:
    packages = {"python": platform.python_version()}
    packages |= {name: metadata.version(name) for name in ("numpy", "pillow", "msgspec")}
    return Tool(
        name="edgecls",
        version=metadata.version("edgecls"),
        packages=packages,
        seed=seed,
        threads=threads,
        profile=profile,
    )


def _dataset(images: ImageSet, n_unreadable: int, limit: int | None) -> Dataset:
    return Dataset(
        sha256=images.digest,
        n=len(images.images) + len(images.missing),
        n_unreadable=len(images.missing) + n_unreadable,
        n_folders=len({image.folder for image in images.images} - {None}),
        labelled=all(image.label is not None for image in images.images),
        limit=limit,
        overlap=0,
    )


def _write(report: Report, output: Path, answers: Answers | None, classes: int, bench: _LatencyBench | None) -> None:
    """Writes the report and what stands beside it, all aside before the first takes its name.

    A process that dies between two renames leaves a report, old or new, without the two; never with another's.
    """
    with ExitStack() as stack:
        files = []
        if answers is not None:
            files.append(stack.enter_context(atomic_file(predictions_path(output))))
            answers.save(files[-1], classes)
        if bench is not None:
            files.append(stack.enter_context(atomic_file(samples_path(output))))
            write_samples(bench.traces, files[-1])
        files.append(stack.enter_context(atomic_file(output)))
        files[-1].write(report.to_json())
        for file in files:  # a full disk is met before anything is gone
            file.flush()
        # What an earlier measurement of this name left would be taken for this one's.
        for stale in (predictions_path(output), samples_path(output)):
            stale.unlink(missing_ok=True)
