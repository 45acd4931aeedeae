"""A sweep: models × targets × precisions × recipes, each point exported and measured for its accuracy.

Points run side by side, in processes of this machine or on a Ray cluster, so that no latency is timed. What a point
gives lies in a folder under its content's address: a sweep that was killed goes on where it stopped, and one that asks
for more computes what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from edgecls.bench.gate_result import Margin
from edgecls.bench.scratch import locked
from edgecls.bench.statistics import Verdict, non_inferiority
from edgecls.calibration.quantization import Quantization
from edgecls.export.sweep_point import Point, PointResult, Task, attempt, classifier_digest
from edgecls.export.sweep_processes import run_in_processes
from edgecls.export.sweep_ray import ray_cluster, run_on_ray
from edgecls.export.targets import is_narrow, target_module
from edgecls.export.versions import installed_versions
from edgecls.models.classifier import Classifier
from edgecls.runtime.atomic_file import PART_PATTERN, refuse_unwritable
from edgecls.runtime.bundle import Precision
from edgecls.runtime.cpu import Isa, cpu_count
from edgecls.runtime.device_memory import open_device_memory
from edgecls.runtime.engines import engine_module
from edgecls.runtime.errors import EdgeclsError, InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress, SilentProgress

SCHEMA = "edgecls.sweep/1"

REFERENCE: tuple[str, Precision] = ("onnxruntime", "fp32")
"""Target and precision of the bundle that a model's points are paired with."""

_NO_LATENCY = "no latency was timed, for points ran side by side: `edgecls bench` times bundles in turns"

_SILENT = SilentProgress()

_Run: TypeAlias = Callable[[Sequence[Task]], Generator[tuple[Task, "str | None"], None, None]]


@dataclass(frozen=True)
class Recipe:
    """One way to make INT8."""

    name: str
    """Part of file names."""
    quantization: Quantization = Quantization()  # noqa: RUF009 (frozen)
    calibration_size: int = 256


@dataclass(frozen=True)
class Grid:
    """What a sweep multiplies, and what all its points share."""

    models: Mapping[str, Callable[[], Classifier]]
    """Name, part of file names, to what opens the model: a function that can be pickled."""
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...]
    recipes: tuple[Recipe, ...] = (Recipe("default"),)
    """For INT8 points; the others have none."""
    isa: Isa = "x86-vnni"
    seed: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one point."""

    name: str
    model: str
    target: str
    precision: Precision
    recipe: str | None
    role: Literal["candidate", "reference"]
    bundle: str
    """Path; only there if the point did not fail."""
    failure: str | None = None
    """What went wrong; null if nothing did."""
    verdict: Verdict | None = None
    """Whether the drop is shown to be below the margin; null for a reference and for a failure."""
    result: PointResult | None = None


class SweepReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """All points, by model, target, precision and recipe."""

    max_drop: str
    """The margin of the verdicts."""
    points: tuple[Outcome, ...]
    left_out: tuple[str, ...]
    """Combinations that make no sense, each with the reason."""
    latency: str = _NO_LATENCY
    """Why there is none."""

    @property
    def exit_code(self) -> int:
        """0, or 1 where a point failed."""
        return int(any(point.failure is not None for point in self.points))

    def to_bench(self, model: str) -> tuple[Outcome, tuple[Outcome, ...]] | None:
        """What is worth timing: the model's reference, and of each target and precision the recipe that loses least.

        Returns:
            None if nothing is.
        """
        best: dict[tuple[str, Precision], tuple[float, Outcome]] = {}
        reference = None
        for point in self.points:
            if point.model != model or point.result is None:
                continue
            if point.role == "reference":
                reference = point
            elif point.verdict != "fail":
                upper = point.result.accuracy.upper95_one_sided_pp
                assert upper is not None
                place = (point.target, point.precision)
                if place not in best or upper < best[place][0]:
                    best[place] = upper, point
        return (reference, tuple(point for _, point in best.values())) if reference is not None and best else None


def sweep(
    grid: Grid,
    data: Path,
    *,
    output: Path,
    calibration: Path | None = None,
    limit: int | None = None,
    max_drop: Margin = Margin(1.0),  # noqa: B008 (frozen)
    jobs: int | None = None,
    ray: str | None = None,
    progress: Progress = _SILENT,
) -> SweepReport:
    """Computes every point that is not there yet, twice where a worker died, and sums up.

    Args:
        data: Pictures in class folders; they measure. On a cluster, every node must find them, the models and `output`
            under the same paths.
        output: Folder of the results; made if it is not there.
        calibration: Pictures that INT8 is calibrated with.
        limit: Largest number of pictures to measure on, spread over the classes.
        max_drop: What top-1 may lose against the model's fp32; for the verdicts.
        jobs: Points at a time, each on one thread; by default one for each CPU that this process may use.
        ray: Address of a Ray cluster that computes instead of processes of this machine, as `ray_cluster` takes it.

    Raises:
        InputError: A model cannot be opened; pictures are missing, or have no labels, or both calibrate and measure;
            the folder cannot be written, or another sweep writes to it.
        MissingExtraError: A package is missing; the message names the extra.
    """
    output = output.resolve()
    refuse_unwritable(output / "results" if output.is_dir() else output)
    calibration = None if calibration is None else calibration.resolve()
    plan = _Plan(grid, data.resolve(), calibration, limit, output, progress, local=ray is None)
    output.mkdir(exist_ok=True)
    try:
        with locked(output):
            for part in output.glob(PART_PATTERN):  # of workers that were killed
                part.unlink()
            failures = _compute(plan, cpu_count() if jobs is None else jobs, ray, progress)
    except BlockingIOError as error:
        raise InputError(f"another sweep writes to {output}: wait for its end, or choose another -o") from error
    outcomes = [_outcome(task, failures.get(task.point.key), max_drop) for task in plan.tasks]
    order: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    outcomes.sort(key=lambda point: (point.model, point.target, order.index(point.precision), point.recipe or ""))
    return SweepReport(max_drop=str(max_drop), points=tuple(outcomes), left_out=tuple(plan.left_out))


class _Plan:
    """The tasks of a sweep.

    Attributes:
        tasks: All of them, each model's reference before those that it is compared with.
        left_out: As in the report.
    """

    def __init__(
        self,
        grid: Grid,
        data: Path,
        calibration: Path | None,
        limit: int | None,
        output: Path,
        progress: Progress,
        *,
        local: bool,
    ) -> None:
        if "int8" in grid.precisions and calibration is None:
            raise InputError(
                "INT8 needs calibration pictures: pass --calibration DIR, or leave int8 out of --precision"
            )
        self._grid, self._limit, self._output, self._packages = grid, limit, output, installed_versions()
        self.tasks: list[Task] = []
        self.left_out: list[str] = []
        self._absent = {name: reason for name in grid.targets if (reason := _absent(name))} if local else {}
        with progress.stage("Looking at the pictures"):
            self._pictures = ImageSet.from_folder(data)
            self._calibration = None if calibration is None else ImageSet.from_folder(calibration)
        with progress.stage("Opening the models", len(grid.models)) as advance:
            for name, open_model in grid.models.items():
                self._add(name, open_model)
                advance(1)

    def _add(self, name: str, open_model: Callable[[], Classifier]) -> None:
        """The points of one model."""
        grid, classifier = self._grid, open_model()
        images = self._pictures.labelled(classifier.labels)
        if any(image.label is None for image in images.images):
            raise InputError(f"the pictures of {images.root} lie in no class folders: without labels there is no drop")
        if self._limit is not None:
            images = images.take(self._limit)
        digest = classifier_digest(classifier)

        def task(target: str, precision: Precision, recipe: Recipe | None, reference: Path | None) -> Task:
            drawn = self._drawn(target, precision, recipe, images)
            point = Point(
                model=name,
                target=target,
                precision=precision,
                recipe=None if recipe is None else recipe.name,
                quantization=None if recipe is None else recipe.quantization,
                classifier_sha256=digest,
                images_sha256=images.digest,
                calibration_sha256=None if drawn is None else drawn.digest,
                isa=grid.isa,
                seed=grid.seed,
                packages=self._packages,
            )
            return Task(point, open_model, images, drawn, self._output, reference)

        first = task(*REFERENCE, None, None)
        self.tasks.append(first)
        for target in grid.targets:
            for precision in grid.precisions:
                for recipe in grid.recipes if precision == "int8" else (None,):
                    if reason := _senseless(classifier, target, precision, recipe) or self._absent.get(target):
                        self.left_out.append(f"{name} on {target} in {precision}: {reason}")
                    elif (target, precision) != REFERENCE:
                        self.tasks.append(task(target, precision, recipe, first.bundle))

    def _drawn(self, target: str, precision: Precision, recipe: Recipe | None, images: ImageSet) -> ImageSet | None:
        """The pictures that calibrate a point."""
        if self._calibration is None or not is_narrow(target, precision):
            return None
        size = Recipe("").calibration_size if recipe is None else recipe.calibration_size
        drawn = self._calibration.take(size, seed=self._grid.seed)
        if shared := images.overlap(frozenset(image.sha256 for image in drawn.images)):
            raise InputError(
                f"{len(shared)} pictures of {images.root} are among those that calibrate (the first: {shared[0].path})"
                ": give --data others"
            )
        return drawn


def _absent(target: str) -> str | None:
    """Why a target's bundles can be made here, and not measured, where that is so."""
    if not getattr(target_module(target), "COMPUTES_IN_HALF", False):
        return None
    engine: Any = engine_module(target)
    try:
        engine.LIBRARY.load("measuring its answers")
        open_device_memory().close()
    except EdgeclsError as error:
        return f"no answers can be measured here ({error}). Export it alone; `edgecls bench --host` measures it"
    return None


def _senseless(classifier: Classifier, target: str, precision: Precision, recipe: Recipe | None) -> str | None:
    """Why a combination is no point, where it is none."""
    module = target_module(target)
    if reason := module.REFUSED.get(precision):
        return reason
    if classifier.float32_only and is_narrow(target, precision):
        return classifier.float32_only
    if recipe and recipe.quantization.quantizer == "nncf" and not hasattr(module, "quantize_with_nncf"):
        return f"recipe {recipe.name}: NNCF's graphs are slow or illegal there"
    return None


def _compute(plan: _Plan, jobs: int, ray: str | None, progress: Progress) -> dict[str, str]:
    """Computes what is missing; why points failed, by their keys."""
    missing = [task for task in plan.tasks if task.result() is None]
    if found := len(plan.tasks) - len(missing):
        progress.note(f"{found} of {len(plan.tasks)} points are there already")
    if not missing:
        return {}
    with _workers(jobs, ray) as run:
        references = [task for task in missing if task.reference is None]
        failures = _run(run, references, "Exporting the references", progress)
        lost = {task.point.model for task in references if task.point.key in failures}
        others = []
        for task in missing:
            if task.point.model not in lost:
                others += [task] if task.reference else []
            elif task.reference:
                failures[task.point.key] = f"not tried, for the reference of {task.point.model} failed"
        return failures | _run(run, others, "Sweeping", progress)


@contextmanager
def _workers(jobs: int, ray: str | None) -> Iterator[_Run]:
    if ray is None:
        yield lambda tasks: run_in_processes(attempt, tasks, jobs)
        return
    with ray_cluster(ray, jobs):
        yield lambda tasks: run_on_ray(attempt, tasks)


def _run(run: _Run, tasks: Sequence[Task], title: str, progress: Progress) -> dict[str, str]:
    failures = {}
    with progress.stage(title, len(tasks)) as advance, closing(run(tasks)) as ended:
        for task, failure in ended:
            if failure is None and task.result() is None:
                failure = f"its result did not come to {task.folder}: every node must share this folder"
            if failure is not None:
                failures[task.point.key] = failure
                progress.note(f"{task.point.name} failed: {failure}")
            advance(1)
    return failures


def _outcome(task: Task, failure: str | None, max_drop: Margin) -> Outcome:
    point, result, verdict = task.point, None, None
    if failure is None:
        result = task.result()
        assert result is not None
        accuracy = result.accuracy
        if task.reference is not None:
            assert accuracy.top1 is not None
            assert accuracy.b is not None
            assert accuracy.c is not None
            margin = max_drop.rate(accuracy.top1 + (accuracy.b - accuracy.c) / accuracy.n)
            verdict = non_inferiority(accuracy.b, accuracy.c, accuracy.n, margin)
    return Outcome(
        name=point.name,
        model=point.model,
        target=point.target,
        precision=point.precision,
        recipe=point.recipe,
        role="candidate" if task.reference else "reference",
        bundle=str(task.bundle),
        failure=failure,
        verdict=verdict,
        result=result,
    )
