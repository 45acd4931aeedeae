"""What the CPU can do: the instruction sets that decide which INT8 graph is exact and fast here."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal

Isa = Literal["x86-vnni", "x86", "arm64"]
"""Instruction set that an INT8 graph was made for. `x86` has no VNNI: its 16-bit intermediate sums saturate."""


@cache
def cpu_isa() -> Isa | None:
    """The instruction set of this machine, or None where we do not know it.

    Linux tells by `/proc/cpuinfo`. An x86 machine elsewhere is taken for one without VNNI, which is the safe side.
    """
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        return "arm64"
    if machine in {"x86_64", "amd64", "i686", "i386"}:
        return "x86-vnni" if {"avx512_vnni", "avx_vnni"} & cpu_flags() else "x86"
    return None


@cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of the first CPU in `/proc/cpuinfo` (x86 `flags`, ARM `Features`); empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def saturates(made_for: Isa | None) -> bool:
    """Whether integer kernels of this CPU may give wrong sums for a graph that was made for another instruction set.

    x86 without VNNI adds pairs of products in 16 bits: only 7-bit weights, those of `x86`, keep within them.
    """
    return cpu_isa() == "x86" and made_for != "x86"


_threads_limit: int | None = None


def limit_threads(count: int) -> None:
    """Lets this process count `count` CPUs at most from now on: for workers that share a machine."""
    global _threads_limit
    _threads_limit = count


def cpu_count() -> int:
    """CPUs that this process may use: the size of its affinity mask where the system has one, within its limit."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _threads_limit or found)
