"""A latency worker whose bundles are text files: words in them say how the fake engine misbehaves."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import edgecls.runtime as runtime
from edgecls.bench.latency_worker import main
from edgecls.runtime.errors import BundleError, EngineError
from edgecls.runtime.preprocess import Preprocess


def load(path: str, threads: int) -> Any:
    words = Path(path).read_text().split()
    if "refused" in words:
        raise BundleError("the engine refuses this bundle")
    calls = 0

    def logits(crops: Any) -> Any:
        nonlocal calls
        calls += 1
        assert crops.shape[-3:] == (16, 16, 3)
        if "batch1" in words and crops.ndim == 4 and len(crops) > 1:
            raise EngineError("the engine takes one picture at a time")
        os.write(1, b"an engine that prints\n")
        if "dies" in words and calls > 20:
            sys.stderr.write("out of cheese\n")
            sys.stderr.flush()
            os._exit(9)
        return np.zeros((1, 10), np.float32)

    return SimpleNamespace(
        bundle=SimpleNamespace(sha256=words[0]),
        preprocess=Preprocess(resize_px=16, crop_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        engine_info=SimpleNamespace(
            provider_requested="CPU", provider_used="GPU" if "fallback" in words else "CPU", threads=threads
        ),
        logits=logits,
        rank=lambda row, top: np.argsort(-row)[:top],
    )


runtime.load = load  # type: ignore[assignment]
sys.exit(main())
