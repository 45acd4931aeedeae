"""What a gate is asked, and what it answers."""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from edgecls.bench.statistics import Verdict
from edgecls.runtime.errors import InputError

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "invalid": 4}
"""What the command line returns for each verdict of a gate."""

Condition = Literal["max-drop", "critical-class", "max-latency-ratio", "max-rss", "max-cold-start"]
"""The option that set a limit."""

Unit = Literal["pp", "ratio", "bytes", "ms"]


class Margin(msgspec.Struct, frozen=True):
    """The largest drop that is accepted."""

    value: float
    """0 < value < 100."""
    unit: Literal["pp", "%rel"] = "pp"
    """Percentage points of accuracy, or per cent of the accuracy that the drop is measured from."""

    def __post_init__(self) -> None:
        if not 0 < self.value < 100:
            raise InputError(
                f"the margin {self} is not between 0{self.unit} and 100{self.unit}: give for example 1{self.unit}"
            )

    @classmethod
    def from_text(cls, text: str) -> Margin:
        """Reads `1pp`, `0.5 pp` or `2%rel`.

        Raises:
            InputError: The unit is missing (a bare number could be meant as a rate, and a bare per cent as either), or
                the value is not between 0 and 100; write for example `1pp`.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(pp|%rel)\s*", text)
        if not match:
            raise InputError(
                f"{text!r} is no margin: write percentage points, for example 1pp or 0.5pp, or per cent of the "
                "reference's accuracy, for example 2%rel"
            )
        return cls(float(match[1]), match[2])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    def rate(self, accuracy: float) -> float:
        """The margin as a rate, of an accuracy 0..1 that is taken as known."""
        return self.value / 100 * (accuracy if self.unit == "%rel" else 1.0)


class CriticalClass(msgspec.Struct, frozen=True):
    """A class with a margin of its own."""

    label: str
    margin: Margin


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate is asked; what is null is not judged.

    Raises:
        InputError: Nothing is asked, or a limit is not a positive number; the message gives an example.
    """

    max_drop: Margin | None = None
    """Of top-1."""
    critical_classes: tuple[CriticalClass, ...] = ()
    """Drops of the recall of single classes."""
    max_latency_ratio: float | None = None
    max_rss_bytes: int | None = None
    """Of the process that runs the bundle alone, decoding included."""
    max_cold_start_ms: float | None = None
    """From the start of the process to the first answer."""
    alpha: float = 0.05
    """Probability of a false pass at a limit, and of a false fail."""

    def __post_init__(self) -> None:
        numbers = {
            "latency ratio": self.max_latency_ratio,
            "peak memory": self.max_rss_bytes,
            "cold start": self.max_cold_start_ms,
        }
        if not (self.max_drop or self.critical_classes or any(value is not None for value in numbers.values())):
            raise InputError(
                "nothing to judge: give a margin (--max-drop 1pp) or a limit (--critical-class NAME:1pp, "
                "--max-latency-ratio 1.1, --max-rss 200MB, --max-cold-start 2s)"
            )
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"the limit {value} of the {name} is not a positive number: give one above 0")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"alpha {self.alpha} is not between 0 and 0.5: give for example 0.05")
        labels = [item.label for item in self.critical_classes]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise InputError(f"the critical class {min(twice)!r} has two margins: give one")

    @property
    def paired(self) -> bool:
        """Whether anything is asked that needs a bundle to compare with."""
        return self.max_drop is not None or bool(self.critical_classes) or self.max_latency_ratio is not None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, and whether a run keeps it."""

    condition: Condition
    label: str | None = None
    """The class, where the limit is one class's."""
    verdict: Verdict
    unit: Unit
    value: float
    """What was measured."""
    lower: float | None = None
    """One-sided bound at 1 - alpha: above the limit is a fail. Null where there is none: a single launch, memory, cold
    start; of the latter two the value itself decides."""
    upper: float | None = None
    """One-sided bound at 1 - alpha: below the limit is a pass."""
    limit: float
    n: int | None = None
    """Pictures of a drop."""
    images_needed: int | None = None
    """Pictures that a pass would probably take (power 0.8); null unless inconclusive with a drop below the margin."""
    message: str
    """One sentence."""


class RunVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of one run: the worst of its checks."""

    name: str
    verdict: Verdict
    against: str | None
    """Name of the run that it is compared with; null where limits need none."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """What decided nothing, but should be known."""

    @property
    def messages(self) -> tuple[str, ...]:
        """One sentence for each check."""
        return tuple(check.message for check in self.checks)


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of a report: the worst of its runs."""

    verdict: Literal["pass", "fail", "inconclusive", "invalid"]
    on_inconclusive: Literal["fail", "pass"] | None = None
    """What an inconclusive verdict counts as in the exit code; null: as itself."""
    limits: Limits
    baseline: str | None = None
    """Name of the earlier report that the runs are compared with; null: with their own report's reference."""
    runs: tuple[RunVerdict, ...]
    reasons: tuple[str, ...]
    """Why the report is invalid."""

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive, 4 invalid."""
        if self.verdict == "inconclusive" and self.on_inconclusive is not None:
            return EXIT_CODES[self.on_inconclusive]
        return EXIT_CODES[self.verdict]
