"""Variants of `bench/fake_latency_worker.py`, whose engine is no engine."""

import sys
from pathlib import Path

import numpy as np

from edgecls.bench.latency_process import Variant

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("bench") / "fake_latency_worker.py"))


def variant(folder: Path, name: str, *words: str) -> Variant:
    """A variant whose bundle holds words that say how its engine misbehaves."""
    path = folder / f"{name}.edgecls"
    path.write_text(" ".join([name, *words]))
    return Variant(name, path, name, np.zeros((3, 16, 16, 3), np.uint8))
