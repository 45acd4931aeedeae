"""The whole measurement: bundles and pictures go in, a report comes out."""

from __future__ import annotations

import hashlib
import io
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from edgecls.bench.accuracy import Answers, Unreadable, classify_images, nothing_readable, summarise
from edgecls.bench.conditions import PERIOD_S, Watcher
from edgecls.bench.device import device, pick_cpus, refuse_absent_cpus
from edgecls.bench.energy import Energy, find_meter, measure_energy
from edgecls.bench.latency import (
    PROFILES,
    Trace,
    cold_start,
    peak_memory,
    rounds,
    summarise_latency,
    time_variants,
    write_samples,
)
from edgecls.bench.latency_process import Variant
from edgecls.bench.report import (
    Dataset,
    Profile,
    Reference,
    Report,
    Run,
    Tool,
    predictions_path,
    samples_path,
    write_report_files,
)
from edgecls.bench.subject import Subject, common_labels, open_subjects, refuse_overlap
from edgecls.bench.throughput import Throughput, measure_throughput, throughput_steps
from edgecls.runtime.atomic_file import refuse_overwriting, refuse_unwritable
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.progress import Progress, SilentProgress
from edgecls.runtime.session import Session, load

_LATENCY_PICTURES = 8
"""Real pictures that take turns in the latency measurement: enough that no branch predictor learns one by heart."""
_MOST_LOOKS = 600
"""Length of the trace of temperature and frequency, whatever the measurement takes."""


def measure(
    bundles: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    profile: Literal["smoke", "quick", "standard", "sustained"] | Profile = "quick",
    latency: bool = True,
    accuracy: bool = True,
    throughput: bool = False,
    limit: int | None = None,
    threads: int | None = None,
    cores: Sequence[int] | None = None,
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
        latency: Whether to measure latency, cold start, memory and, where there is a meter, energy.
        accuracy: Whether to measure accuracy.
        throughput: Whether to measure the throughput of batches too, after the latency.
        limit: Largest number of pictures, taken by content hash and spread over the classes.
        threads: Threads of one inference; by default one for each of `cores`, or for each CPU that this process may
            use.
        cores: CPUs that timed processes are pinned to, as many as there are threads; by default see `pick_cpus`.
        seed: Of the order in which variants take turns.
        progress: Told about the stages.

    Raises:
        InputError: The options, the bundles or the pictures do not fit together; the message says which and what to
            do. A picture that cannot be read among good ones is no error: it makes the report invalid.
        BundleError: A bundle is damaged: get it again.
        MissingExtraError: A bundle's engine is not installed: install the extra that the message names.
        EngineError: An engine fails on its bundle.
    """
    if cores is not None:
        refuse_absent_cpus(cores)
    threads = len(cores or ()) or cpu_count() if threads is None else threads
    output, settings = Path(output), _profile(profile)
    check_options(latency, accuracy, throughput, limit, threads, cores)
    if not output.resolve().parent.is_dir():
        raise InputError(f"the folder of {output} does not exist: create it or choose another `-o`")
    refuse_unwritable(output)
    refuse_overwriting(output, [*bundles, *([] if reference is None else [reference])])
    subjects, reference_run = open_subjects(bundles, reference, progress)
    labels = common_labels(subjects)
    images = ImageSet.from_folder(data, labels, tolerant=True)
    if limit is not None:
        images = images.take(limit)
    refuse_overlap(subjects, images)
    expected_s = settings.launches * settings.timed_s * len(subjects)
    watcher = Watcher(period_s=max(PERIOD_S, expected_s / _MOST_LOOKS))
    with ExitStack() as stack:
        # Opened even where only latency is measured: what cannot be loaded is told before anything is timed.
        sessions = [stack.enter_context(load(subject.bundle, threads=threads)) for subject in subjects]
        engines = [session.engine_info for session in sessions]
        answers = _classify(sessions, images, reference_run, progress) if accuracy else None
    unreadable = answers.unreadable if answers else ()
    bench = None
    if latency:
        bench = _LatencyBench(subjects, settings, threads, cores, seed)
        unreadable = (*unreadable, *bench.run(images, unreadable, progress, watcher))
        bench.run_apart(progress, throughput)
    conditions, interruptions = watcher.finish(cpu_count())
    runs = tuple(
        _run(index, subject, engines[index], answers, bench, reference_run, labels, output)
        for index, subject in enumerate(subjects)
    )
    reasons = [f"cannot read {path}: {why}" for path, why in images.missing]
    reasons += [f"cannot read {image.path}: {why}" for image, why in unreadable]
    if bench is not None:
        reasons += interruptions
    predictions = None if answers is None else _content(partial(answers.save, classes=len(labels)))
    samples = None if bench is None else _content(partial(write_samples, bench.traces))
    report = Report(
        tool=_tool(seed, threads, bench.profile if bench else None),
        valid=not reasons and all(run.valid for run in runs),
        reasons=tuple(reasons),
        device=device(),
        conditions=conditions,
        dataset=_dataset(images, len(unreadable), limit),
        reference=None if reference_run is None else Reference(subjects[reference_run].bundle.sha256, reference_run),
        runs=runs,
        predictions_sha256=None if predictions is None else hashlib.sha256(predictions).hexdigest(),
        samples_sha256=None if samples is None else hashlib.sha256(samples).hexdigest(),
    )
    write_report_files(output, report.to_json(), predictions, samples)
    return report


def _content(write: Callable[[IO[bytes]], None]) -> bytes:
    """What a file would hold."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _profile(profile: str | Profile) -> Profile:
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise InputError(f"no profile is called {profile!r}: choose {', '.join(PROFILES)}")
    return PROFILES[profile]


def check_options(
    latency: bool,
    accuracy: bool,
    throughput: bool,
    limit: int | None,
    threads: int | None,
    cores: Sequence[int] | None,
) -> None:
    """Refuses options of `measure` that contradict each other, whatever the machine that is to measure.

    Raises:
        InputError: They do; the message says which to leave out.
    """
    if not latency and not accuracy:
        raise InputError("nothing to measure: leave out `--no-latency` or `--no-accuracy`")
    if throughput and not latency:
        raise InputError("throughput is measured after latency: leave out `--no-latency` or `--throughput`")
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} pictures leaves nothing to measure: give at least 1")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot run anything: give at least 1")
    if cores is not None and threads is not None and len(cores) != threads:
        raise InputError(
            f"{threads} threads do not fit CPU {', '.join(map(str, cores))}: give `--cores` one CPU for each thread, "
            "or leave out `--threads`"
        )


def _classify(sessions: Sequence[Session], images: ImageSet, reference_run: int | None, progress: Progress) -> Answers:
    with progress.stage("Measuring accuracy", len(images.images)) as advance:
        return classify_images(sessions, images, reference_run, advance)


class _LatencyBench:
    """The latency part of a measurement, and what is measured apart after it."""

    traces: tuple[Trace, ...]
    throughputs: Sequence[Throughput | None]
    energies: Sequence[Energy | str]
    """For each subject its energy, or why there is none."""

    def __init__(
        self, subjects: Sequence[Subject], profile: Profile, threads: int, cores: Sequence[int] | None, seed: int
    ) -> None:
        self.profile, self.threads, self._cores = profile, threads, cores
        self.cpus = self._pick(threads)
        self._subjects, self._seed = subjects, seed

    def _pick(self, threads: int) -> tuple[int, ...] | None:
        """The CPUs for so many threads."""
        return pick_cpus(threads) if self._cores is None else tuple(self._cores[:threads])

    def run(
        self, images: ImageSet, unreadable: Sequence[Unreadable], progress: Progress, watcher: Watcher
    ) -> tuple[Unreadable, ...]:
        """Times all subjects on a few of the pictures; returns those that turned out to be unreadable."""
        crops, pictures, skipped = _latency_pictures(self._subjects, images, unreadable)
        self._variants = [
            Variant(subject.name, Path(subject.bundle.path), subject.bundle.sha256, crop)
            for subject, crop in zip(self._subjects, crops, strict=True)
        ]
        watcher.begin()
        with progress.stage("Measuring latency", self.profile.launches * rounds(self.profile)) as advance:

            def after_round(steps: int) -> None:
                watcher.look()
                advance(steps)

            self.traces = time_variants(
                self._variants,
                pictures,
                profile=self.profile,
                threads=self.threads,
                cpus=self.cpus,
                seed=self._seed,
                advance=after_round,
            )
        return skipped

    def run_apart(self, progress: Progress, throughput: bool) -> None:
        """Measures energy where there is a meter, and throughput if that is wanted."""
        self.throughputs = [None] * len(self._variants)
        meter = find_meter()
        if isinstance(meter, str):
            self.energies = [meter] * len(self._variants)
        else:
            with progress.stage("Measuring energy", len(self._variants)) as advance:
                self.energies = measure_energy(
                    self._variants,
                    meter,
                    seconds=self.profile.apart_s,
                    threads=self.threads,
                    cpus=self.cpus,
                    advance=advance,
                )
        if throughput:
            with progress.stage("Measuring throughput", throughput_steps(self.threads)) as advance:
                self.throughputs = measure_throughput(
                    self._variants,
                    seconds=self.profile.apart_s,
                    threads=self.threads,
                    pick_cpus=self._pick,
                    advance=advance,
                )


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
            content = path.read_bytes()  # not by its name, which would stand in the reason with all its folders
            pixels = [subject.bundle.manifest.preprocess.pixels(content) for subject in subjects]
        except (InputError, OSError) as error:
            skipped.append((image, getattr(error, "strerror", None) or str(error)))
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
    energy = bench.energies[index] if bench else None
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
        throughput=bench.throughputs[index] if bench else None,
        energy=energy if isinstance(energy, Energy) else None,
        energy_unavailable=energy if isinstance(energy, str) else None,
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
