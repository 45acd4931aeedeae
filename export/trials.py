"""Plans tried on their engine: how far the answers leave the float graph, and how fast they come."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.bench.softmax import divergence
from edgecls.calibration.collect import crops
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.export.pack import Quantized, answering_engine, assemble
from edgecls.export.placement import place
from edgecls.export.targets import Artifact, Gpu, target_module
from edgecls.export.versions import installed_versions
from edgecls.models.classifier import Classifier
from edgecls.runtime.bundle import Manifest, Padding
from edgecls.runtime.cpu import Isa, cpu_count, cpu_isa
from edgecls.runtime.engines import Engine
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Advance
from edgecls.runtime.session import Session

_PAIRS = 30
"""Inferences of each of two engines that take turns: enough to tell 3 % apart on a machine with other work."""

_WARM_UP = 5

_PIECE = 256
"""Pictures whose answers are remembered together."""

_SUSPICIOUS = 0.25
"""Share of other answers above which a note warns: a graph with 5 % is above it once in 50,000 draws of 32."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one plan did."""

    n: int
    """Pictures."""
    right: int
    """Pictures that the float graph got right."""
    b: int
    """Pictures that only the float graph got right."""
    c: int
    """Pictures that only the quantized one got right."""
    flips: int
    """Pictures whose best class changed."""
    kl: float
    """Mean divergence of the answers from the float graph's, nats."""
    ratio: float | None
    """Time of an inference over that of the float graph on the same engine, the two taking turns; None where the
    engine need not be on this machine, or nothing may be timed."""
    ms: float | None
    """Median time of an inference while that was measured."""

    @property
    def drop_pp(self) -> float:
        """Of top-1, percentage points."""
        return 100 * (self.b - self.c) / self.n

    def notes(self) -> tuple[str, ...]:
        """What the user should know of the pictures that calibrated."""
        said = f"INT8 and float agree on the best class of {self.n - self.flips} of {self.n} calibration pictures"
        if self.flips > _SUSPICIOUS * self.n:
            said += (
                ": quantization has damaged this network. Measure it with `edgecls bench` before anybody relies on it, "
                "or let --max-drop keep in float what needs to be; ship fp32 if neither helps"
            )
        if self.ratio is None:
            return said, (
                "INT8 was not timed beside fp32: its engine or instruction set is another machine's, or other work "
                "runs here. `edgecls bench` times it on the device"
            )
        pace = f"INT8 takes {self.ratio:.2f} of fp32's time on this machine ({_PAIRS} pictures in turns)"
        if self.ratio >= 1:
            pace += ": it is not faster here, ship fp32 unless the smaller file counts"
        return said, pace


class Trials:
    """Tries plans of one graph on one target, and remembers what came out.

    Args:
        classifier: That the graph was traced from.
        graph: The float graph.
        target: On whose engine.
        isa: Instruction set that the graphs are made for.
        gpu: What a target that runs on a GPU makes the graph for.
        pictures: That judge. Without classes the float graph's answers count as the truth, which only overstates drops.
        memory: A file with a line for each trial and for each piece of other answers, from which a run that was killed
            goes on; None remembers nothing.
        timed: Whether the pace is measured; where other work runs beside it, it would say nothing.
    """

    def __init__(
        self,
        classifier: Classifier,
        graph: Graph,
        *,
        target: str,
        isa: Isa,
        gpu: Gpu,
        pictures: ImageSet,
        memory: Path | None = None,
        timed: bool = True,
    ) -> None:
        self._classifier, self._graph, self._target, self._isa, self._gpu = classifier, graph, target, isa, gpu
        self._pixels = np.concatenate(list(crops(pictures, classifier.preprocess)))
        self._setting = (graph.digest, classifier.preprocess, target, isa, gpu, pictures.digest, installed_versions())
        self._memory = memory
        self._known = _remembered(memory)
        # Engines that need not be on this machine have their stand-in, and no float engine is built for nothing.
        own = not getattr(target_module(target), "COMPUTES_IN_HALF", False)
        floats = target if own else "onnxruntime"
        artifact = target_module(floats).compile_artifact(graph, "fp32", None, isa)
        manifest, _ = assemble(classifier, graph, floats, "fp32", artifact, None)
        self._float = answering_engine(manifest, artifact)
        # Elsewhere another engine answers, or this one by other kernels: its pace says nothing.
        self._is_paced = timed and own and isa == cpu_isa()
        affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        # Those whose pace a trial tells: on others it is measured anew.
        self._cpus = (cpu_count(), affinity) if self._is_paced else None
        self._expected = np.concatenate([self._float.infer(pixels[None]) for pixels in self._pixels])
        labels = [image.label for image in pictures.images]
        self._truth = self._expected.argmax(axis=1) if None in labels else np.asarray(labels)

    def close(self) -> None:
        """Frees the float engine."""
        self._float.close()

    def integers(self, plan: QuantPlan) -> frozenset[str]:
        """Weighted operations that a plan puts on integers and the target's rules do not leave in float."""
        rules = target_module(self._target).rules(self._isa, self._gpu)
        return frozenset(plan.weights.keys() - place(self._graph.ir_model(), plan, rules).floats.keys())

    def compile(self, plan: QuantPlan) -> tuple[Artifact, Manifest, dict[str, bytes]]:
        """A plan's artifact, and the manifest and members of its bundle."""
        artifact = target_module(self._target).compile_artifact(self._graph, "int8", plan, self._isa, self._gpu)
        quantized = Quantized(artifact, plan, plan.calibration, "edgecls")
        return artifact, *assemble(self._classifier, self._graph, self._target, "int8", artifact, quantized)

    def run(self, plan: QuantPlan) -> Trial:
        """Tries a plan, or recalls what it did."""
        key = self._key(plan)
        known = self._known.get(key)
        if not isinstance(known, Trial):
            artifact, manifest, _ = self.compile(plan)
            known = self.look(artifact, manifest)
            self._remember(key, known)
        return known

    def answers(
        self, pictures: ImageSet, plan: QuantPlan | None, advance: Advance = lambda steps: None
    ) -> NDArray[np.int64]:
        """Best classes of other pictures, `int64 [pictures]`: by a plan, or by the float graph; or what they were.

        Args:
            advance: Told the number of pictures that were answered.
        """
        starts = range(0, len(pictures), _PIECE)
        pieces = [ImageSet(pictures.root, pictures.images[start : start + _PIECE]) for start in starts]
        keys = [self._key(plan, [image.sha256 for image in piece.images]) for piece in pieces]
        unknown = {key: piece for key, piece in zip(keys, pieces, strict=True) if key not in self._known}
        advance(len(pictures) - sum(map(len, unknown.values())))
        if unknown and plan is None:
            self._answer(unknown, self._float, None, advance)
        elif unknown and plan is not None:
            artifact, manifest, _ = self.compile(plan)
            with closing(answering_engine(manifest, artifact)) as engine:
                self._answer(unknown, engine, manifest.padding, advance)
        return np.concatenate([np.asarray(self._known[key], np.int64) for key in keys])

    def _answer(
        self, pieces: Mapping[str, ImageSet], engine: Engine, padding: Padding | None, advance: Advance
    ) -> None:
        for key, piece in pieces.items():
            best: list[int] = []
            for batch in crops(piece, self._classifier.preprocess):
                best += [int(engine.infer(Session.pad(pixels[None], padding))[0].argmax()) for pixels in batch]
                advance(len(batch))
            self._remember(key, tuple(best))

    def _key(self, plan: QuantPlan | None, asked: Sequence[str] = ()) -> str:
        """Of what a plan, or the float graph, did to pictures; those of all trials where others are not named."""
        digest = None
        if plan is not None:
            digest = msgspec.structs.replace(plan, sensitivity=None).digest  # which changes no graph
        return hashlib.sha256(msgspec.json.encode((self._setting, digest, asked or self._cpus))).hexdigest()

    def _remember(self, key: str, known: Trial | tuple[int, ...]) -> None:
        self._known[key] = known
        if self._memory is not None:
            with self._memory.open("ab") as file:
                # The first line end is for what a killed run was writing.
                file.write(b"\n" + msgspec.json.encode((key, known)) + b"\n")

    def look(self, artifact: Artifact, manifest: Manifest) -> Trial:
        """Tries an artifact, whoever made it."""
        with closing(answering_engine(manifest, artifact)) as engine:
            padded = [Session.pad(pixels[None], manifest.padding) for pixels in self._pixels]
            # One at a time: that is how a board runs it, and what every engine has compiled already.
            logits = np.concatenate([engine.infer(pixels) for pixels in padded])
            ratio, ms = self._pace(engine, padded) if self._is_paced else (None, None)
        best, expected = logits.argmax(axis=1), self._expected.argmax(axis=1)
        right, was_right = best == self._truth, expected == self._truth
        return Trial(
            n=len(logits),
            right=int(np.count_nonzero(was_right)),
            b=int(np.count_nonzero(was_right & ~right)),
            c=int(np.count_nonzero(right & ~was_right)),
            flips=int(np.count_nonzero(best != expected)),
            kl=float(divergence(self._expected, logits).mean()),
            ratio=ratio,
            ms=ms,
        )

    def _pace(self, engine: Engine, padded: Sequence[NDArray[np.uint8]]) -> tuple[float, float]:
        pairs: list[tuple[float, float]] = []
        for turn in range(_WARM_UP + _PAIRS):
            index = turn % len(padded)
            ways = ((engine, padded[index]), (self._float, self._pixels[index][None]))
            times = [0.0, 0.0]
            for way in (0, 1) if turn % 2 else (1, 0):
                run, pixels = ways[way]
                run.infer(pixels)  # while the other's threads may still be spinning
                began = time.perf_counter()
                run.infer(pixels)
                times[way] = time.perf_counter() - began
            pairs.append((times[0], times[1]))
        timed = pairs[_WARM_UP:]
        return statistics.median(a / b for a, b in timed), 1e3 * statistics.median(a for a, _ in timed)


def _remembered(memory: Path | None) -> dict[str, Trial | tuple[int, ...]]:
    known: dict[str, Trial | tuple[int, ...]] = {}
    if memory is not None and memory.exists():
        for line in memory.read_bytes().splitlines():
            try:
                key, done = msgspec.json.decode(line, type=tuple[str, Trial | tuple[int, ...]])
            except msgspec.DecodeError:
                continue  # empty, or what a killed run was writing
            known[key] = done
    return known
