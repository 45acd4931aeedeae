"""Whether a report meets a margin: pass, fail or inconclusive, never a guess."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from edgecls.bench.report import (
    AccuracyVerdict,
    GateResult,
    LatencyVerdict,
    Report,
    Run,
    RunVerdict,
)
from edgecls.bench.statistics import (
    Verdict,
    images_needed,
    lower_bound,
    mean_interval,
    non_inferiority,
    upper_bound,
)
from edgecls.runtime.errors import InputError

_SEVERITY: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")


def max_drop_pp_from_text(text: str) -> float:
    """Reads a margin such as `1pp` or `0.5 pp`: percentage points of accuracy.

    Raises:
        InputError: The suffix is missing (a bare number could be meant as a rate), or the value is not between 0 and
            100; write for example `1pp`.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*pp\s*", text)
    if not match:
        raise InputError(f"{text!r} is no margin: write percentage points with their suffix, for example 1pp or 0.5pp")
    value = float(match[1])
    if not 0 < value < 100:
        raise InputError(f"the margin {text.strip()} is not between 0pp and 100pp: write for example 1pp")
    return value


def judge(
    report: Report,
    max_drop_pp: float | None,
    max_latency_ratio: float | None = None,
    variant: str | None = None,
    alpha: float = 0.05,
) -> GateResult:
    """Judges every run but the reference; the worst verdict wins.

    The drop passes when Tango's score test shows it to be below the margin, fails when the test shows it to be above,
    each one-sided at `alpha`; otherwise it is inconclusive. The latency ratio likewise, by Student's t over launches.

    Args:
        report: Of bundles that were measured together with a reference.
        max_drop_pp: Margin of the drop in top-1, percentage points, or None.
        max_latency_ratio: Limit of the latency ratio against the reference, or None.
        variant: Name of the only run to judge.
        alpha: Probability of a false pass at the margin.

    Raises:
        InputError: The report lacks what the question needs: a reference, labels, latencies, the variant.
    """
    _check_limits(max_drop_pp, max_latency_ratio, alpha)
    verdicts: tuple[RunVerdict, ...] = ()
    if report.valid:
        verdicts = tuple(_judge_run(run, max_drop_pp, max_latency_ratio, alpha) for run in _candidates(report, variant))
    return GateResult(
        verdict=_worst(item.verdict for item in verdicts) if report.valid else "invalid",
        max_drop_pp=max_drop_pp,
        max_latency_ratio=max_latency_ratio,
        alpha=alpha,
        runs=verdicts,
        reasons=(*report.reasons, *(f"{run.name}: {reason}" for run in report.runs for reason in run.reasons)),
    )


def _check_limits(max_drop_pp: float | None, max_latency_ratio: float | None, alpha: float) -> None:
    if max_drop_pp is None and max_latency_ratio is None:
        raise InputError("nothing to judge: give a margin (--max-drop 1pp) or a limit (--max-latency-ratio 1.1)")
    if max_drop_pp is not None and not 0 < max_drop_pp < 100:
        raise InputError(f"the margin {max_drop_pp}pp is not between 0pp and 100pp: give for example 1pp")
    if max_latency_ratio is not None and not 0 < max_latency_ratio < math.inf:
        raise InputError(f"the latency ratio {max_latency_ratio} is not a positive number: give for example 1.1")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha} is not between 0 and 0.5: give for example 0.05")


def _candidates(report: Report, variant: str | None) -> tuple[Run, ...]:
    """The runs to judge."""
    if report.reference is None:
        raise InputError("the report has no reference to judge against: measure again with `--reference BUNDLE`")
    reference = report.runs[report.reference.run]
    candidates = tuple(run for run in report.runs if run is not reference)
    if variant is not None:
        names = ", ".join(run.name for run in candidates) or "none"
        if variant == reference.name:
            raise InputError(f"{variant!r} is the report's reference; the runs to judge are: {names}")
        candidates = tuple(run for run in candidates if run.name == variant)
        if not candidates:
            raise InputError(f"the report has no run {variant!r}; the runs to judge are: {names}")
    if not candidates:
        raise InputError("the report holds only its reference: measure it together with the bundles to judge")
    return candidates


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=_SEVERITY.index)


def _judge_run(run: Run, max_drop_pp: float | None, max_latency_ratio: float | None, alpha: float) -> RunVerdict:
    accuracy = None if max_drop_pp is None else _judge_accuracy(run, max_drop_pp, alpha)
    latency = None if max_latency_ratio is None else _judge_latency(run, max_latency_ratio, alpha)
    messages = []
    if accuracy is not None and max_drop_pp is not None:
        messages.append(_accuracy_message(accuracy, max_drop_pp, alpha))
    if latency is not None and max_latency_ratio is not None:
        messages.append(_latency_message(latency, max_latency_ratio))
    return RunVerdict(
        name=run.name,
        verdict=_worst(part.verdict for part in (accuracy, latency) if part is not None),
        accuracy=accuracy,
        latency=latency,
        messages=tuple(messages),
    )


def _judge_accuracy(run: Run, max_drop_pp: float, alpha: float) -> AccuracyVerdict:
    accuracy = run.accuracy
    if accuracy is None:
        raise InputError(f"{run.name}: accuracy was not measured: measure again without `--no-accuracy`")
    if accuracy.b is None or accuracy.c is None:
        raise InputError(
            f"{run.name}: the pictures had no labels, so there is no drop to judge: "
            "measure again on a folder with one sub-folder a class"
        )
    b, c, n, margin = accuracy.b, accuracy.c, accuracy.n, max_drop_pp / 100
    verdict = non_inferiority(b, c, n, margin, alpha)
    return AccuracyVerdict(
        verdict=verdict,
        drop_pp=100 * (b - c) / n,
        lower_pp=100 * lower_bound(b, c, n, alpha),
        upper_pp=100 * upper_bound(b, c, n, alpha),
        n=n,
        images_needed=images_needed(b, c, n, margin, alpha) if verdict == "inconclusive" else None,
    )


def _judge_latency(run: Run, max_latency_ratio: float, alpha: float) -> LatencyVerdict:
    latency = run.latency
    if latency is None or latency.ratio is None:
        raise InputError(f"{run.name}: the latency ratio was not measured: measure again without `--no-latency`")
    logs = np.log([launch.ratio for launch in latency.launches if launch.ratio is not None])
    interval = mean_interval(logs, confidence=1 - 2 * alpha)
    if interval is None:
        return LatencyVerdict(verdict="inconclusive", ratio=latency.ratio, lower=None, upper=None)
    lower, upper = math.exp(interval[0]), math.exp(interval[1])
    verdict: Verdict = "pass" if upper < max_latency_ratio else "fail" if lower > max_latency_ratio else "inconclusive"
    return LatencyVerdict(verdict=verdict, ratio=latency.ratio, lower=lower, upper=upper)


def _accuracy_message(judged: AccuracyVerdict, max_drop_pp: float, alpha: float) -> str:
    observed = f"drop {judged.drop_pp:+.2f} pp on {judged.n} pictures"
    confidence = f"{100 * (1 - alpha):g} % sure"
    if judged.verdict == "pass":
        return f"{observed}: {confidence} below {judged.upper_pp:.2f} pp, within the margin of {max_drop_pp:g} pp"
    if judged.verdict == "fail":
        return f"{observed}: {confidence} above {judged.lower_pp:.2f} pp, over the margin of {max_drop_pp:g} pp"
    unsure = (
        f"{observed}: the true drop may be from {judged.lower_pp:.2f} to {judged.upper_pp:.2f} pp, "
        f"so neither below nor above the margin of {max_drop_pp:g} pp is shown"
    )
    if judged.images_needed is None:
        return f"{unsure}; the observed drop is not below the margin, so more pictures like these would not help"
    return f"{unsure}; about {judged.images_needed} pictures would be needed (80 % power)"


def _latency_message(judged: LatencyVerdict, max_latency_ratio: float) -> str:
    observed = f"latency ratio {judged.ratio:.3f}"
    if judged.lower is None or judged.upper is None:
        return f"{observed} from a single launch: measure more launches to judge it"
    span = f"{observed} ({judged.lower:.3f} to {judged.upper:.3f} over launches)"
    outcome = {"pass": "below", "fail": "above", "inconclusive": "neither shown to be below nor above"}[judged.verdict]
    return f"{span}: {outcome} the limit of {max_latency_ratio:g}"
