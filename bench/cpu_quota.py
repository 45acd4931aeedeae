"""How much CPU time the control group of this process may use: a container or service often gets less than it sees."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from edgecls.bench.system import read_text


class CpuQuota(NamedTuple):
    """Limit and its consequences; null where the system does not tell."""

    cpus: float | None
    """CPUs' worth of time, the smallest of the group and those that it lies in; null where it is not limited."""
    waits: int | None
    """Periods so far in which a group had used up its time and had to wait."""


def cpu_quota(root: Path = Path("/")) -> CpuQuota:
    """The quota of this process, from control groups of either version; files are looked for below `root`."""
    limits, waits = [], []
    for folder in _groups(root):
        limits.append(_limit(folder))
        waits += re.findall(r"^nr_throttled (\d+)$", read_text(folder / "cpu.stat") or "", re.MULTILINE)
    return CpuQuota(min(filter(None, limits), default=None), sum(map(int, waits)) if waits else None)


def _groups(root: Path) -> list[Path]:
    """Folders of the group and of those that it lies in, as far as a container shows them."""
    mount, folders = root / "sys/fs/cgroup", []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            base, parts = mount / "cpu" if controllers else mount, PurePosixPath(path.strip("/")).parts
            folders += [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return folders


def _limit(folder: Path) -> float | None:
    """`150000 100000` are 1.5 CPUs; `max` and -1 are no limit."""
    words = (read_text(folder / "cpu.max") or "").split()
    words = words or [read_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    quota, period = words if len(words) == 2 else ("", "")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None
