"""The bundles of a measurement: which they are, and whether they can be measured together on these pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecls.bench.report import ArtifactRecord, CalibrationSummary, PreprocessRecord
from edgecls.runtime.bundle import Bundle
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.progress import Progress


@dataclass(frozen=True)
class Subject:
    """A bundle that is measured."""

    name: str
    """The file's name without its suffix, with the beginning of the digest where two files share a name."""
    bundle: Bundle

    @property
    def artifact(self) -> ArtifactRecord:
        """What the report says of the bundle."""
        manifest = self.bundle.manifest
        passport, provenance = manifest.passport, manifest.provenance
        return ArtifactRecord(
            sha256=self.bundle.sha256,
            size_bytes=self.bundle.size_bytes,
            name=manifest.name,
            model=provenance.model,
            target=manifest.target,
            precision=manifest.precision,
            isa=passport.isa,
            quantizer=provenance.quantizer,
            checkpoint_sha256=provenance.checkpoint_sha256,
            graph_sha256=provenance.graph_sha256,
            plan_sha256=provenance.plan_sha256,
            int8_share=passport.nodes_int8 / passport.nodes if passport.nodes else None,
        )

    @property
    def calibration(self) -> CalibrationSummary | None:
        """What the report says of the pictures that calibrated the bundle; None for a float bundle."""
        record = self.bundle.manifest.provenance.calibration
        if record is None:
            return None
        return CalibrationSummary(sha256=record.sha256, n=len(record.images), seed=record.seed)

    @property
    def preprocess(self) -> PreprocessRecord:
        """What the report says of the preprocessing."""
        preprocess = self.bundle.manifest.preprocess
        return PreprocessRecord(sha256=preprocess.digest, settings=preprocess)


def open_subjects(
    bundles: Sequence[str | os.PathLike[str]], reference: str | os.PathLike[str] | None, progress: Progress
) -> tuple[tuple[Subject, ...], int | None]:
    """Opens the bundles, each content once, in the order given; a reference that is not among them comes last.

    Returns:
        The subjects, and the index of the reference (None without one).

    Raises:
        InputError: There is no bundle.
        BundleError: A bundle is damaged.
    """
    if not bundles:
        raise InputError("no bundle to measure: name at least one .edgecls file")
    opened: dict[str, Bundle] = {}
    for path in bundles:
        bundle = Bundle(path)
        if bundle.sha256 in opened:
            progress.note(f"{path} is the same bundle as {opened[bundle.sha256].path}: measured once")
        else:
            opened[bundle.sha256] = bundle
    reference_sha256 = None
    if reference is not None:
        bundle = Bundle(reference)
        reference_sha256 = bundle.sha256
        opened.setdefault(bundle.sha256, bundle)
    shared = Counter(_stem(bundle) for bundle in opened.values())
    subjects = tuple(
        Subject(
            name=_stem(bundle) if shared[_stem(bundle)] == 1 else f"{_stem(bundle)}@{bundle.sha256[:8]}", bundle=bundle
        )
        for bundle in opened.values()
    )
    return subjects, None if reference_sha256 is None else list(opened).index(reference_sha256)


def common_labels(subjects: Sequence[Subject]) -> Labels:
    """The classes of all subjects, with identifiers where any of them has them.

    Raises:
        InputError: Two bundles do not have the same classes in the same order.
    """
    first = subjects[0]
    chosen = first.bundle.manifest.labels
    for subject in subjects[1:]:
        labels = subject.bundle.manifest.labels
        if labels.names != chosen.names:
            raise InputError(
                f"{first.name} and {subject.name} do not have the same classes ({_difference(chosen, labels)}): "
                "measure bundles of different classes in separate runs"
            )
        if labels.ids is not None and chosen.ids is not None and labels.ids != chosen.ids:
            raise InputError(
                f"{first.name} and {subject.name} have the same class names under different identifiers: "
                "export them again with one labels file"
            )
        chosen = chosen if chosen.ids is not None else labels
    return chosen


def refuse_overlap(subjects: Sequence[Subject], images: ImageSet) -> None:
    """Refuses pictures that calibrated one of the bundles.

    Raises:
        InputError: The sets share pictures: measure on others.
    """
    for subject in subjects:
        record = subject.bundle.manifest.provenance.calibration
        shared = images.overlap(frozenset(record.images)) if record is not None else ()
        if shared:
            raise InputError(
                f"{len(shared)} of the {len(images.images)} pictures in {images.root} calibrated {subject.name} "
                f"(the first: {shared[0].path}), so its accuracy on them proves nothing: "
                "give `--data` pictures that were not used for calibration"
            )


def _stem(bundle: Bundle) -> str:
    # A name that is not UTF-8 could not be written to a report.
    return Path(bundle.path).name.removesuffix(".edgecls").encode("utf-8", "backslashreplace").decode()


def _difference(one: Labels, other: Labels) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} classes"
    index = next(i for i, (a, b) in enumerate(zip(one.names, other.names, strict=True)) if a != b)
    return f"class {index} is {one.names[index]!r} and {other.names[index]!r}"
