"""What a board is asked to do by `edgecls bench --host`, and the files that it needs for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecls.bench import board
from edgecls.bench.board_wheel import board_wheel
from edgecls.bench.measure import check_options
from edgecls.bench.subject import common_labels, open_subjects, refuse_overlap
from edgecls.runtime.engines import engine_module
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress


@dataclass(frozen=True)
class BoardJob:
    """What a board is asked to do, and where the bytes for it are."""

    contents: dict[str, Path | bytes]
    """Digest to a file, or to the bytes themselves."""
    sizes: dict[str, int]
    work: dict[str, Any]
    """What `board.Board.start` takes."""
    dataset_sha256: str
    """Of the pictures, as the report will name it."""

    @property
    def digest(self) -> str:
        """The identity of the job: the same command on the same files goes on with what it began."""
        return hashlib.sha256(json.dumps(self.work, sort_keys=True).encode()).hexdigest()


def board_job(
    bundles: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    output: Path,
    reference: str | os.PathLike[str] | None,
    limit: int | None,
    options: dict[str, Any],
    progress: Progress,
) -> BoardJob:
    """What has to be sent and done; all of it is opened and checked here first, as `measure` will do there.

    Args:
        bundles: As for `measure`; so are `data`, `reference` and `limit`.
        data: Folder of pictures.
        output: The report's file.
        reference: The bundle that the others are paired with.
        limit: Largest number of pictures.
        options: The other options of `edgecls bench`, by the names of `measure`.
        progress: Told about bundles that are given twice.

    Raises:
        InputError: The options, the bundles and the pictures do not fit together, or a picture cannot be read: remove
            it, or make it readable.
        BundleError: A bundle is damaged: get it again.
    """
    check_options(
        options.get("latency", True),
        options.get("accuracy", True),
        options.get("throughput", False),
        limit,
        options.get("threads"),
        options.get("cores"),
    )
    subjects, reference_run = open_subjects(bundles, reference, progress)
    images = ImageSet.from_folder(data, common_labels(subjects))
    if limit is not None:
        images = images.take(limit)
    refuse_overlap(subjects, images)
    wheel_name, wheel = board_wheel()
    wheel_sha256 = hashlib.sha256(wheel).hexdigest()
    contents: dict[str, Path | bytes] = {wheel_sha256: wheel}
    files = {}
    for index, subject in enumerate(subjects):
        contents[subject.bundle.sha256] = Path(subject.bundle.path)
        files[f"bundles/{index}/{Path(subject.bundle.path).name}"] = subject.bundle.sha256
    names = list(files)
    for image in images.images:
        contents[image.sha256] = images.root / image.path
        files[f"data/{image.path}"] = image.sha256
    extras = ",".join(sorted({engine_module(subject.bundle.manifest.target).PACKAGE for subject in subjects}))
    asked = {**options, "limit": limit, "data": "data", "output": f"{board.REPORT}/{output.name}"}
    if reference_run is not None:
        asked["reference"] = names[reference_run]
    return BoardJob(
        contents=contents,
        sizes={
            digest: len(content) if isinstance(content, bytes) else content.stat().st_size
            for digest, content in contents.items()
        },
        work={
            "venv": f"venv-{wheel_sha256[:16]}-{extras.replace(',', '-')}",
            "wheel": (wheel_sha256, wheel_name),
            "extras": extras,
            "files": files,
            "bench": [*_arguments(asked), "--", *names],
        },
        dataset_sha256=images.digest,
    )


def _arguments(options: dict[str, Any]) -> Iterator[str]:
    """Options of `edgecls bench` as its command line takes them."""
    for name, value in options.items():
        if isinstance(value, bool):
            if value or name in ("latency", "accuracy"):
                yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, (list, tuple)):
            yield f"--{name}={','.join(map(str, value))}"
        elif value is not None:
            yield f"--{name}={value}"
