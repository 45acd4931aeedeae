"""Building a model draws random weights; the caller's random numbers must not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Restores the global generators of torch (CPU), numpy and `random` when the block ends, however it ends."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
