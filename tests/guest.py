"""What runs inside an emulated CPU: `python guest.py CROPS.npy OUTPUT.npz BUNDLE...` writes each bundle's logits.

The engine is asked directly, for a session refuses a bundle that is not made for its CPU. No process is started.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgecls.runtime import Bundle
from edgecls.runtime.engines import engine_module
from edgecls.runtime.session import Session


def features() -> list[str]:
    """What the CPU says that it has, by CPUID, for `/proc/cpuinfo` is the host's."""
    from numpy._core._multiarray_umath import __cpu_features__

    return sorted(name for name, present in __cpu_features__.items() if present)


def logits(path: Path, crops: np.ndarray) -> np.ndarray:
    """The logits of `uint8 [n, side, side, 3]`, crop by crop as on a device."""
    bundle = Bundle(path)
    manifest = bundle.manifest
    module = engine_module(manifest.target)
    engine = module.open_engine([bundle.read(name) for name in manifest.artifact], manifest, 1)
    return np.concatenate([engine.infer(Session.pad(crop[None], manifest.padding)) for crop in crops])


if __name__ == "__main__":
    crops, output, *bundles = sys.argv[1:]
    np.savez(
        output,
        features=np.asarray(features()),
        **{Path(bundle).stem: logits(Path(bundle), np.load(crops)) for bundle in bundles},
    )
