"""The recovery ladder: the plan, then ever more of its blocks in float, until the drop is shown to be within a budget.

What is tried is chosen on pictures of the calibration folder. The budget's own pictures only certify, a few times, each
time at a level of significance divided by the number of times (Bonferroni): trying often does not help a graph to pass.
A look that fails teaches how much too rosy the choosing pictures are (the network may have been trained on them); that
only decides how much more stays in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edgecls.bench.gate_result import Margin
from edgecls.bench.statistics import Verdict, images_needed, non_inferiority, upper_bound
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import BlockSensitivity, QuantPlan
from edgecls.export.sensitivity import with_floats, with_sensitivity
from edgecls.export.trials import Trial, Trials
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress

_LOOKS = 3
"""Plans that are certified at most: as it is, with the blocks that should do, with at least twice as many."""

_FREE = 0.03
"""Part of the float graph's time below which a block costs nothing that trials can tell from chance."""


@dataclass(frozen=True)
class Budget:
    """How much accuracy INT8 may cost, and the pictures that judge it."""

    max_drop: Margin
    """Of top-1."""
    images: ImageSet
    """With labels; they neither calibrate nor choose anything."""
    alpha: float = 0.05
    """Probability, at most, that a graph is certified whose true drop is `max_drop`."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What the budget's pictures say about one plan."""

    verdict: Verdict
    n: int
    b: int
    """Pictures that only the float graph got right."""
    c: int
    """Pictures that only the quantized one got right."""
    upper_pp: float
    """The drop is below, with a confidence of 1 − `alpha`."""
    alpha: float
    """Level of this one look."""
    images_needed: int | None
    """About so many would decide it, where it is inconclusive."""

    @property
    def drop_pp(self) -> float:
        """Observed, percentage points."""
        return 100 * (self.b - self.c) / self.n


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One plan on the way."""

    floats: tuple[str, ...]
    """Blocks that stay in float."""
    drop_pp: float
    """On the pictures that choose."""
    kl: float
    ms: float | None
    ratio: float | None
    """Time over that of the float graph on the same engine."""


@dataclass(frozen=True)
class Recovery:
    """Where the ladder ended."""

    plan: QuantPlan
    """The best one."""
    floats: tuple[str, ...]
    """Its blocks in float."""
    certificate: Certificate
    pareto: tuple[Rung, ...]
    """Plans that no other beats in both drop and time; the fastest first."""
    notes: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """Certificate, blocks in float and Pareto list."""
        certificate = {**msgspec.structs.asdict(self.certificate), "drop_pp": self.certificate.drop_pp}
        return {"certificate": certificate, "floats": self.floats, "pareto": self.pareto, "notes": self.notes}

    def to_json(self) -> bytes:
        """`document` as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self.document()), indent=1) + b"\n"


def recover(graph: Graph, plan: QuantPlan, trials: Trials, target: str, budget: Budget, progress: Progress) -> Recovery:
    """Climbs the ladder.

    Args:
        graph: The float graph.
        plan: With every correction that costs nothing at run time.
        trials: On the target; their pictures choose.
        target: Its name.
        budget: What must be shown.
        progress: Told about the stages.

    """
    ladder = _Ladder(plan, trials, budget, progress)
    if ladder.certify([]) == "pass":
        return ladder.end()
    ladder.plan = with_sensitivity(graph, plan, trials, target, progress)
    assert ladder.plan.sensitivity is not None
    ladder.blocks = sorted(
        (block for block in ladder.plan.sensitivity.blocks if block.kl > 0),
        key=lambda block: -block.kl / _price(block),
    )
    integers = trials.integers(plan)
    while ladder.blocks and integers <= {node for block in ladder.blocks for node in block.nodes}:
        del ladder.blocks[-1]  # all of them in float would be the float graph, which is no INT8
    ladder.climb()
    return ladder.end()


def refuse_shared(budget: Budget, drawn: ImageSet, choosing: ImageSet) -> None:
    """Refuses a budget whose pictures have no labels, calibrated or choose.

    Raises:
        InputError: So it is; the message says which pictures to take out.
    """
    if any(image.label is None for image in budget.images.images):
        raise InputError(
            f"{budget.images.root} has no class folders, so that no drop can be measured: --eval takes a folder with "
            "a sub-folder a class."
        )
    used = frozenset(image.sha256 for image in (*drawn.images, *choosing.images))
    if shared := budget.images.overlap(used):
        raise InputError(
            f"{len(shared)} of the {len(budget.images)} pictures of --eval are in the calibration folder too (the "
            f"first: {shared[0].path}): take others, these would flatter the plan that they have shaped."
        )


def _names(blocks: Sequence[BlockSensitivity]) -> tuple[str, ...]:
    return tuple(block.name for block in blocks)


def _price(block: BlockSensitivity) -> float:
    return max(block.cost or 0.0, _FREE)


@dataclass
class _Ladder:
    plan: QuantPlan
    trials: Trials
    budget: Budget
    progress: Progress
    blocks: list[BlockSensitivity] = field(default_factory=list)
    """Those that are worth keeping in float, the best bargain first."""
    rungs: dict[tuple[str, ...], tuple[QuantPlan, Trial]] = field(default_factory=dict)
    certificates: dict[tuple[str, ...], Certificate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    optimism: float = 1.0
    """Share of pictures lost among the budget's over that among those that choose, the largest of the looks."""

    def run(self, blocks: Sequence[BlockSensitivity]) -> Trial:
        """Tries the plan with blocks in float."""
        names = _names(blocks)
        if names not in self.rungs:
            plan = with_floats(self.plan, [node for block in blocks for node in block.nodes])
            self.rungs[names] = plan, self.trials.run(plan)
        return self.rungs[names][1]

    def climb(self) -> None:
        """Keeps ever more blocks in float until a look passes, the looks are spent or integers are no longer faster."""
        enough = 0
        for left in reversed(range(_LOOKS - 1)):
            twice, enough = 2 * enough, self.bisect()
            attempts = [self.thin(self.blocks[:enough])]
            if left == 0:  # nothing comes after it: rather a few too many
                attempts.insert(0, self.blocks[: max(twice, enough)])
            attempts = [attempt for attempt in attempts if _names(attempt) not in self.certificates]
            faster = [attempt for attempt in attempts if self.is_faster(attempt)]
            if attempts and not faster:
                self.notes.append(
                    f"with {len(attempts[-1])} blocks in float INT8 takes {self.run(attempts[-1]).ratio:.2f} of the "
                    "float graph's time: ship the float graph"
                )
            if not faster or self.certify(faster[0]) == "pass":
                return

    def promises(self, blocks: Sequence[BlockSensitivity]) -> bool:
        """Whether the budget's pictures would certify it if they behaved as those that choose, but for the optimism."""
        if any(set(_names(blocks)) <= set(failed) for failed in self.certificates):
            return False
        trial, n = self.run(blocks), len(self.budget.images)
        c = round(trial.c * n / trial.n)
        b = min(round(self.optimism * trial.b * n / trial.n), n - c)
        return upper_bound(b, c, n, self.alpha) < self.budget.max_drop.rate(trial.right / trial.n)

    def is_faster(self, blocks: Sequence[BlockSensitivity]) -> bool:
        """Whether integers are still worth it."""
        ratio = self.run(blocks).ratio
        return ratio is None or ratio < 1

    def bisect(self) -> int:
        """The fewest best bargains that promise to do; all of them where none does."""
        low, high = 0, len(self.blocks)
        with self.progress.stage("Looking for the blocks to keep in float", len(self.blocks).bit_length()) as advance:
            while low < high:
                middle = (low + high) // 2
                if self.promises(self.blocks[:middle]):
                    high = middle
                else:
                    low = middle + 1
                advance(1)
        return low

    def thin(self, chosen: Sequence[BlockSensitivity]) -> list[BlockSensitivity]:
        """The backward pass: quantizes again, the worst bargain first, what is no longer needed."""
        kept = list(chosen)
        if not self.promises(kept):
            return kept
        with self.progress.stage("Quantizing again what may be", len(kept)) as advance:
            for block in reversed(chosen):
                fewer = [other for other in kept if other is not block]
                if self.promises(fewer):
                    kept = fewer
                advance(1)
        return kept

    def certify(self, blocks: Sequence[BlockSensitivity]) -> Verdict:
        """Judges a plan on the budget's pictures."""
        names, trial = _names(blocks), self.run(blocks)
        pictures = self.budget.images
        with self.progress.stage(f"Judging with {len(names)} blocks in float", 2 * len(pictures)) as advance:
            before = self.trials.answers(pictures, None, advance)
            after = self.trials.answers(pictures, self.rungs[names][0], advance)
        truth = np.asarray([image.label for image in pictures.images])
        b = int(np.count_nonzero((before == truth) & (after != truth)))
        c = int(np.count_nonzero((before != truth) & (after == truth)))
        n, margin = len(truth), self.budget.max_drop.rate(float(np.mean(before == truth)))
        verdict = non_inferiority(b, c, n, margin, self.alpha)
        self.optimism = max(self.optimism, (b / n) / (max(trial.b, 1) / trial.n))
        self.certificates[names] = Certificate(
            verdict=verdict,
            n=n,
            b=b,
            c=c,
            upper_pp=100 * upper_bound(b, c, n, self.alpha),
            alpha=self.alpha,
            images_needed=images_needed(b, c, n, margin, self.alpha) if verdict == "inconclusive" else None,
        )
        return verdict

    @property
    def alpha(self) -> float:
        """Of one look."""
        return self.budget.alpha / _LOOKS

    def end(self) -> Recovery:
        """The certified plan, or the one that came nearest."""
        order: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")
        names, certificate = min(
            self.certificates.items(), key=lambda item: (order.index(item[1].verdict), item[1].upper_pp)
        )
        trial = self.rungs[names][1]
        if trial.ratio is not None and trial.ratio >= 1:
            self.notes.append(
                f"INT8 takes {trial.ratio:.2f} of the float graph's time on this machine: ship the latter"
            )
        # The first rung is older than the sensitivity, which was measured on the way.
        plan = msgspec.structs.replace(self.rungs[names][0], sensitivity=self.plan.sensitivity)
        return Recovery(plan, names, certificate, self._pareto(), tuple(self.notes))

    def _pareto(self) -> tuple[Rung, ...]:
        rungs = [
            Rung(floats=names, drop_pp=trial.drop_pp, kl=trial.kl, ms=trial.ms, ratio=trial.ratio)
            for names, (_, trial) in self.rungs.items()
        ]
        rungs.sort(key=lambda rung: (rung.ratio or 0.0, rung.drop_pp, rung.kl))
        front: list[Rung] = []
        for rung in rungs:
            if all((rung.drop_pp, rung.kl) < (better.drop_pp, better.kl) for better in front):
                front.append(rung)
        return tuple(front)
