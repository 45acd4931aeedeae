"""Our INT8 beside that of onnxruntime.quantization and NNCF: one fp32 graph, the same pictures, the same engines.

    pip install 'edgecls[peers]'
    python tests/perf/against/quantizers.py MODEL --data PICTURES --work FOLDER [--calibration PICTURES] [--size 128]

MODEL and its options are those of `edgecls export`. Without --calibration, --size pictures of --data calibrate and the
others are measured. Both EfficientNet-Lite0 with its ImageNet weights and a network of CIFAR-10 are run so:

    ... timm:tf_efficientnet_lite0 --checkpoint .../EfficientNet-lite0.pth --match order --labels imagenet_classes.txt
        --data imagenet-dev
    ... mobilenet_v3_small --checkpoint mobilenet_v3_small_cifar10.pt --labels classes.txt --resize 64 --crop 64
        --data cifar10/test --calibration cifar10/train --size 256

Every graph answers every picture on each engine; drop, disagreement and divergence are against the same engine's
fp32. "edgecls symmetric" is our graph for TensorRT, answered by ONNX Runtime in its stead. "Δ to ours" is the peer's
minus ours with its paired 95 % interval: above zero, ours is closer to fp32. Times are medians of single pictures, one
thread, all graphs of an engine in turns, as ratios to fp32. FOLDER keeps what was quantized, so that a second call goes
on where the first was stopped, and FOLDER/rows.json every model's rows.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import turns
from peers import ONNX_PEERS, OPENVINO_PEERS, Calibration, Files, ir_files

from edgecls.bench.softmax import divergence
from edgecls.bench.statistics import confidence_interval
from edgecls.calibration.collect import calibration_set, crops
from edgecls.calibration.plan import QuantPlan
from edgecls.console import Console
from edgecls.export.job import export_bundle
from edgecls.export.pack import answering_engine
from edgecls.export.targets import target_module
from edgecls.export.trace import Trace, trace
from edgecls.export.versions import installed_versions
from edgecls.models import Classifier
from edgecls.options import model_options
from edgecls.parameter_types import INPUT_FOLDER
from edgecls.runtime import Bundle, ImageSet, Session, load
from edgecls.runtime.cpu import cpu_isa
from edgecls.runtime.engines import engine_module

TARGETS = {"onnxruntime": (*ONNX_PEERS,), "openvino": (*OPENVINO_PEERS, *ONNX_PEERS)}
SYMMETRIC = "edgecls symmetric"
ROUND = 5
"""Calls of a turn."""
RESAMPLES = 5000

Infer = Callable[[np.ndarray], np.ndarray]
"""`uint8 [1, crop, crop, 3]` to logits `float32 [1, classes]`."""


class Workshop:
    """What one model's run is made of, and where what was made is kept."""

    def __init__(self, classifier: Classifier, drawn: ImageSet, folder: Path) -> None:
        self.classifier, self.drawn, self.folder = classifier, drawn, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.traced: Trace = trace(classifier)
        labels = [image.label for image in drawn.images]
        self.calibration = Calibration(
            list(crops(drawn, classifier.preprocess, batch=1)), None if None in labels else labels
        )
        self._seconds = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self._seconds.read_text()) if self._seconds.exists() else {}

    def ours(self, target: str, precision: str) -> Path:
        """Our bundle."""
        path = self.folder / f"{target}-{precision}.edgecls"
        if not path.exists():
            self._timed(
                f"{target} {precision}",
                lambda: export_bundle(
                    self.classifier, target=target, precision=precision, output=path, isa=cpu_isa(), threads=1,
                    calibration=self.drawn if precision == "int8" else None, calibration_size=len(self.drawn),
                    traced=self.traced,
                ),
            )  # fmt: skip
        return path

    def peers(self, name: str) -> Files:
        """The files that a peer makes."""
        kinds = ("onnx",) if name in ONNX_PEERS else ("xml", "bin")
        paths = [self.folder / f"{name.replace(' ', '-')}.{kind}" for kind in kinds]
        if not all(path.exists() for path in paths):
            make = (ONNX_PEERS | OPENVINO_PEERS)[name]
            made = self._timed(name, lambda: make(self.traced.graph, self.calibration, cpu_isa() == "x86"))
            for path, data in zip(paths, [made] if isinstance(made, bytes) else made, strict=True):
                path.write_bytes(data)
        return [path.read_bytes() for path in paths]

    def symmetric(self) -> Infer:
        """Our graph for TensorRT, which knows only ranges around zero, on ONNX Runtime."""
        bundle = Bundle(self.ours("tensorrt", "int8"))
        plan = msgspec.json.decode(bundle.read("plan.json"), type=QuantPlan)
        artifact = target_module("tensorrt").compile_artifact(self.traced.graph, "int8", plan, cpu_isa())
        engine, padding = answering_engine(bundle.manifest, artifact), bundle.manifest.padding
        return lambda crop: engine.infer(Session.pad(crop, padding))

    def _timed(self, name: str, make: Callable[[], Any]) -> Any:
        print(f"{self.classifier.name}: {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        made = make()
        self.seconds[name] = time.perf_counter() - began
        self._seconds.write_text(json.dumps(self.seconds, indent=1))
        return made


def opened(shop: Workshop, target: str, asked: Sequence[str]) -> tuple[dict[str, Infer], dict[str, str]]:
    """Every graph on an engine, one thread; and why some peers are not among them."""
    runs: dict[str, Infer] = {}
    failed: dict[str, str] = {}
    for precision, name in {"fp32": "fp32", "int8": "edgecls"}.items():
        session = load(shop.ours(target, precision), threads=1)
        padding = session.bundle.manifest.padding
        runs[name] = lambda crop, s=session, p=padding: s.engine.infer(s.pad(crop, p))  # the bare engine, as the peers
    if target == "onnxruntime":
        runs[SYMMETRIC] = shop.symmetric()
    manifest = Bundle(shop.ours(target, "fp32")).manifest
    for name in asked:
        try:
            files = shop.peers(name)
            if target == "openvino" and name in ONNX_PEERS:
                files = ir_files(files[0])
            runs[name] = engine_module(target).open_engine(files, manifest, 1).infer
            runs[name](shop.calibration.crops[0])
        except Exception as error:  # a peer that cannot do it is a row of the table, not the end
            runs.pop(name, None)
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{name} on {target} failed: {failed[name]}", file=sys.stderr, flush=True)
    return runs, failed


def timed(runs: dict[str, Infer], crop: np.ndarray, seconds: float) -> dict[str, tuple[float, float]]:
    """For each graph the median milliseconds, and the median over rounds of its time as a part of fp32's."""
    ways = {name: partial(infer, crop) for name, infer in runs.items()}
    with turns.one_cpu():
        times = turns.in_turns(ways, seconds * len(runs), calls=ROUND, warm_up=10)
    return {name: (float(np.median(ms)), float(np.median(ms / times["fp32"]))) for name, ms in times.items()}


def rows_of(
    target: str, answers: dict[str, np.ndarray], labels: np.ndarray | None, times: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """A row for each graph of an engine.

    Args:
        answers: Logits, `float32 [images, classes]`, by name.
        labels: `int [images]`; None where they are not known.
        times: As `timed` gives them.
    """
    n = len(answers["fp32"])
    best = {name: logits.argmax(axis=1) for name, logits in answers.items()}
    kl = {name: divergence(answers["fp32"], logits) for name, logits in answers.items()}
    other = {name: found != best["fp32"] for name, found in best.items()}
    rows = []
    for name in answers:
        row: dict[str, Any] = {"target": target, "quantizer": name, "n": n, "p50_ms": times[name][0]}
        row |= {"time_ratio": times[name][1], "disagreement": float(other[name].mean()), "kl": float(kl[name].mean())}
        if labels is not None:
            b, c = paired(best["fp32"] == labels, best[name] == labels)
            row |= {"top1": float(np.mean(best[name] == labels)), "b": b, "c": c, "drop_pp": 100 * (b - c) / n}
        if name not in {"fp32", "edgecls"}:
            b, c = paired(other[name], other["edgecls"])
            row["disagreement_over_ours"] = [(b - c) / n, *confidence_interval(b, c, n)]
            row["kl_over_ours"] = bootstrapped(kl[name] - kl["edgecls"])
        rows.append(row)
    return rows


def paired(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Pictures of which only the one is true, and only the other."""
    return int(np.sum(one & ~other)), int(np.sum(other & ~one))


def bootstrapped(differences: np.ndarray) -> list[float]:
    """Mean of a difference, and its 95 % interval by resampling pictures."""
    rng = np.random.default_rng(0)
    n = len(differences)
    means = [differences[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)]
    return [float(differences.mean()), *map(float, np.quantile(means, (0.025, 0.975)))]


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All models' rows as Markdown."""
    lines = [
        "| model | engine | quantizer | drop, pp | disagreement, % | Δ to ours, points | KL | Δ to ours "
        "| time / fp32 | ms | quantized in, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, found in rows.items():
        for row in found:
            start = f"| {model} | {row['target']} | {row['quantizer']} "
            if "failed" in row:
                lines.append(f"{start}| failed: {row['failed'].replace('|', '/')} |" + " |" * 7)
                continue
            lines.append(
                f"{start}| {_number(row.get('drop_pp'), '+.2f')} | {100 * row['disagreement']:.2f} "
                f"| {_interval(row.get('disagreement_over_ours'), 100, '+.2f')} | {row['kl']:.4f} "
                f"| {_interval(row.get('kl_over_ours'), 1, '+.4f')} | {row['time_ratio']:.2f} | {row['p50_ms']:.2f} "
                f"| {_number(row.get('seconds'), '.0f')} |"
            )
    return "\n".join(lines)


def _number(value: float | None, style: str) -> str:
    return "" if value is None else f"{value:{style}}"


def _interval(values: list[float] | None, factor: float, style: str) -> str:
    if values is None:
        return ""
    middle, low, high = (f"{factor * value:{style}}" for value in values)
    return f"{middle} [{low}, {high}]"


def drawn_and_measured(
    classifier: Classifier, data: Path, calibration: Path | None, size: int, limit: int | None
) -> tuple[ImageSet, ImageSet]:
    """The pictures that calibrate, and those that are measured: none is both."""
    measured = ImageSet.from_folder(data, classifier.labels)
    pool = measured if calibration is None else ImageSet.from_folder(calibration, classifier.labels)
    # Without a seed, as the tests split a folder.
    drawn = calibration_set(pool.take(size), size, 0)
    used = {image.sha256 for image in drawn.images}
    rest = tuple(image for image in measured.images if image.sha256 not in used)
    measured = msgspec.structs.replace(measured, images=rest)
    return drawn, measured if limit is None else measured.take(limit)


def all_rows(
    shop: Workshop, measured: ImageSet, targets: Sequence[str], asked: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """The rows of a model on all engines."""
    name = shop.classifier.name
    pixels = list(crops(measured, shop.classifier.preprocess, batch=1))
    truth = [image.label for image in measured.images]
    labels = None if None in truth else np.asarray(truth)
    found: list[dict[str, Any]] = []
    for target in targets:
        runs, failed = opened(shop, target, [peer for peer in TARGETS[target] if not asked or peer in asked])
        print(f"{name}: {len(runs)} graphs answer {len(pixels)} pictures on {target}", file=sys.stderr, flush=True)
        answers = {run: np.concatenate([infer(crop) for crop in pixels]) for run, infer in runs.items()}
        found += rows_of(target, answers, labels, timed(runs, pixels[0], seconds))
        found += [{"target": target, "quantizer": peer, "failed": why} for peer, why in failed.items()]
    for row in found:
        ours = {"edgecls": f"{row['target']} int8", SYMMETRIC: "tensorrt int8"}
        row |= {"seconds": shop.seconds.get(ours.get(row["quantizer"], row["quantizer"]))}
    return found


@click.command()
@model_options
@click.option("--data", type=INPUT_FOLDER, required=True, help="Pictures that are measured.")
@click.option("--calibration", type=INPUT_FOLDER, help="Pictures to calibrate with. [default: some of --data]")
@click.option("--size", default=128, show_default=True, help="How many pictures calibrate; a multiple of 16.")
@click.option("--limit", type=int, help="At most so many pictures are measured.")
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TARGETS)), default=list(TARGETS))
@click.option("--quantizer", "asked", multiple=True, help="Only these peers. [default: all]")
@click.option("--seconds", default=5.0, show_default=True, help="Timed seconds of each graph.")
@click.option("--name", help="Of the model in the table.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where graphs and rows are kept.")
def main(
    open_model: Callable[[], Classifier],
    data: Path,
    calibration: Path | None,
    size: int,
    limit: int | None,
    targets: tuple[str, ...],
    asked: tuple[str, ...],
    seconds: float,
    name: str | None,
    work: Path,
) -> None:
    """Quantizes, measures and prints MODEL; rows of other models in the folder are printed too."""
    kept = work / "rows.json"
    with Console().work():
        classifier = open_model()
        name = name or classifier.name
        drawn, measured = drawn_and_measured(classifier, data, calibration, size, limit)
        # What was kept is taken back only where nothing that it was made of has changed.
        made_of = (classifier.checkpoint_sha256, classifier.preprocess, drawn.digest, installed_versions())
        key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
        shop = Workshop(classifier, drawn, work / f"{name}-{key}")
        found = all_rows(shop, measured, targets, asked, seconds)
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    rows[name] = found
    kept.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
