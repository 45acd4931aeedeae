"""Whether a report keeps its limits: pass, fail or inconclusive, never a guess."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Literal

from edgecls.bench.gate_result import Check, CriticalClass, GateResult, Limits, Margin, RunVerdict
from edgecls.bench.measured import Measured, visible
from edgecls.bench.opponent import Opponent, measured_accuracy, opponent_of
from edgecls.bench.report import ClassAccuracy, Report, Run
from edgecls.bench.statistics import Verdict, images_needed, lower_bound, non_inferiority, upper_bound
from edgecls.runtime.errors import InputError

_SEVERITY: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")


def judge(
    report: Report | Measured,
    limits: Limits,
    *,
    variant: str | None = None,
    baseline: Measured | None = None,
    on_inconclusive: Literal["fail", "pass"] | None = None,
) -> GateResult:
    """Judges every run but the reference; the worst verdict wins.

    A drop passes when Tango's score test shows it to be below the margin, fails when the test shows it to be above,
    each one-sided at alpha; otherwise it is inconclusive. The latency ratio likewise, by Student's t over launches.
    A run must keep every limit, so that no correction for their number is due: a false pass needs a false pass of the
    very limit that is broken. Memory and cold start are compared as they were measured.

    Args:
        report: What is judged; with a baseline as `open_measured` gives it, for its predictions.
        limits: What is asked.
        variant: Name of the only run to judge.
        baseline: An earlier report, whose run of the same name each run is compared with instead of with its own
            report's reference.
        on_inconclusive: What an inconclusive verdict counts as in the exit code.

    Raises:
        InputError: The report lacks what the limits need (a reference, labels, latencies, the variant), or it and the
            baseline cannot be compared; the message names what is missing or differs.
    """
    measured = report if isinstance(report, Measured) else Measured("report", report, None, None)
    report = measured.report
    if baseline is not None and not baseline.report.valid:
        raise InputError(f"the baseline {baseline.name} is not valid: measure it again, or give another")
    verdicts: tuple[RunVerdict, ...] = ()
    if report.valid:
        verdicts = tuple(
            _judge_run(report.runs[index], opponent_of(measured, index, baseline) if limits.paired else None, limits)
            for index in _candidates(report, variant, limits.paired and baseline is None)
        )
    return GateResult(
        verdict=_worst(item.verdict for item in verdicts) if report.valid else "invalid",
        on_inconclusive=on_inconclusive,
        limits=limits,
        baseline=None if baseline is None else baseline.name,
        runs=verdicts,
        reasons=(*report.reasons, *(f"{run.name}: {reason}" for run in report.runs for reason in run.reasons)),
    )


def _candidates(report: Report, variant: str | None, paired: bool) -> list[int]:
    """Indices of the runs to judge; `paired` where each needs the report's own reference."""
    if report.reference is None and paired:
        raise InputError(
            "the report has no reference to judge against: measure again with `--reference BUNDLE`, "
            "or compare with an earlier report (`--baseline REPORT`)"
        )
    reference = None if report.reference is None else report.reference.run
    candidates = [index for index in range(len(report.runs)) if index != reference]
    if variant is not None:
        names = ", ".join(report.runs[index].name for index in candidates) or "none"
        candidates = [index for index in candidates if report.runs[index].name == variant]
        if not candidates and reference is not None and report.runs[reference].name == variant:
            raise InputError(f"{variant!r} is the report's reference; the runs to judge are: {names}")
        if not candidates:
            raise InputError(f"the report has no run {variant!r}; the runs to judge are: {names}")
    if not candidates:
        raise InputError("the report holds only its reference: measure it together with the bundles to judge")
    return candidates


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=_SEVERITY.index)


def _judge_run(run: Run, opponent: Opponent | None, limits: Limits) -> RunVerdict:
    checks = []
    if opponent is not None:
        if limits.max_drop is not None:
            checks.append(_judge_drop(run, opponent, limits.max_drop, None, limits.alpha))
        checks += [_judge_class(run, opponent, critical, limits.alpha) for critical in limits.critical_classes]
        if limits.max_latency_ratio is not None:
            checks.append(_judge_latency(opponent, limits.max_latency_ratio, limits.alpha))
    if limits.max_rss_bytes is not None:
        checks.append(_judge_memory(run, limits.max_rss_bytes))
    if limits.max_cold_start_ms is not None:
        checks.append(_judge_cold_start(run, limits.max_cold_start_ms))
    drops = any(check.unit == "pp" for check in checks)
    return RunVerdict(
        name=run.name,
        verdict=_worst(check.verdict for check in checks),
        against=None if opponent is None else opponent.name,
        checks=tuple(checks),
        notes=run.accuracy.warnings if drops and run.accuracy is not None else (),
    )


def _judge_class(run: Run, opponent: Opponent, critical: CriticalClass, alpha: float) -> Check:
    name = _normal(critical.label)
    classes = [item for item in measured_accuracy(run).per_class or () if item.n and _normal(item.label) == name]
    if len(classes) != 1:
        raise InputError(
            f"{run.name}: {len(classes) or 'no'} classes with pictures are called {critical.label!r}: "
            "give --critical-class a name of the report's per_class that one class alone has"
        )
    return _judge_drop(run, opponent, critical.margin, classes[0], alpha)


def _normal(label: str) -> str:
    """One spelling of what looks the same."""
    return visible(unicodedata.normalize("NFC", label))


def _judge_drop(run: Run, opponent: Opponent, margin: Margin, label: ClassAccuracy | None, alpha: float) -> Check:
    counts = opponent.counts(label)
    b, c, n = counts.b, counts.c, counts.n
    if margin.unit == "%rel" and not counts.accuracy:
        raise InputError(f"{run.name}: {margin} of an accuracy that is 0 or unknown is no margin: give one in pp")
    rate = margin.rate(counts.accuracy or 0.0)
    verdict = non_inferiority(b, c, n, rate, alpha)
    lower, upper = 100 * lower_bound(b, c, n, alpha), 100 * upper_bound(b, c, n, alpha)
    needed = images_needed(b, c, n, rate, alpha) if verdict == "inconclusive" else None
    drop, limit = 100 * (b - c) / n, 100 * rate
    bound = f"the margin of {limit:.3g} pp" + (f" ({margin})" if margin.unit == "%rel" else "")
    observed = f"drop {drop:+.2f} pp on {n} pictures" + ("" if label is None else f" of {label.label}")
    if verdict == "inconclusive":
        message = (
            f"{observed}: the true drop may be from {lower:.2f} to {upper:.2f} pp, "
            f"so neither below nor above {bound} is shown"
        )
        message += (
            "; the observed drop is not below the margin, so more pictures like these would not help"
            if needed is None
            else f"; about {needed} pictures would be needed (80 % power)"
        )
    else:
        shown = f"below {upper:.2f} pp, within" if verdict == "pass" else f"above {lower:.2f} pp, over"
        message = f"{observed}: {100 * (1 - alpha):g} % sure {shown} {bound}"
    return Check(
        condition="max-drop" if label is None else "critical-class",
        label=None if label is None else label.label,
        verdict=verdict,
        unit="pp",
        value=drop,
        lower=lower,
        upper=upper,
        limit=limit,
        n=n,
        images_needed=needed,
        message=message,
    )


def _judge_latency(opponent: Opponent, limit: float, alpha: float) -> Check:
    ratio, interval = opponent.ratio(1 - 2 * alpha)
    lower, upper = interval or (None, None)
    verdict: Verdict = "inconclusive"
    message = (
        f"latency ratio {ratio:.3f} from a single launch, as the sustained profile has: judge a report of the quick or "
        "the standard one"
    )
    if lower is not None and upper is not None:
        verdict = "pass" if upper < limit else "fail" if lower > limit else "inconclusive"
        words = {"pass": "below", "fail": "above", "inconclusive": "neither shown to be below nor above"}[verdict]
        message = (
            f"latency ratio {ratio:.3f} ({lower:.3f} to {upper:.3f} over launches): {words} the limit of {limit:g}"
        )
    if not opponent.in_turns:
        message += "; the two were not measured in turns: trust it where the machine was idle both times"
    return Check(
        condition="max-latency-ratio",
        verdict=verdict,
        unit="ratio",
        value=ratio,
        lower=lower,
        upper=upper,
        limit=limit,
        message=message,
    )


def _judge_memory(run: Run, limit: int) -> Check:
    if run.memory is None:
        raise InputError(f"{run.name}: memory was not measured: measure again without `--no-latency`")
    peak = run.memory.peak_rss_bytes
    words = "within" if peak <= limit else "over"
    return Check(
        condition="max-rss",
        verdict="pass" if peak <= limit else "fail",
        unit="bytes",
        value=peak,
        limit=limit,
        message=f"peak memory {peak / 1e6:.1f} MB: {words} the limit of {limit / 1e6:g} MB",
    )


def _judge_cold_start(run: Run, limit: float) -> Check:
    if run.coldstart is None:
        raise InputError(f"{run.name}: the cold start was not measured: measure again without `--no-latency`")
    total = run.coldstart.total_ms
    words = "within" if total <= limit else "over"
    return Check(
        condition="max-cold-start",
        verdict="pass" if total <= limit else "fail",
        unit="ms",
        value=total,
        limit=limit,
        message=f"first answer {total:.0f} ms after the start (median): {words} the limit of {limit:g} ms",
    )
