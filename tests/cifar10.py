"""CIFAR-10 as JPEG files, where this machine has them, and the network that was trained on them for the tests."""

from __future__ import annotations

import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "cifar10.zip"
TRAINED = Path(__file__).parent / "data" / "mobilenet_v3_small_cifar10.safetensors"
"""MobileNetV3-Small, 64 px; tests/data/README.md says how it was trained."""

missing = None if ARCHIVE.exists() else f"no CIFAR-10 at {ARCHIVE}"


def unpack(folder: Path, part: str, per_class: int) -> Path:
    """Unpacks the first pictures of every class of `train` or `test`; returns the folder of classes."""
    taken: dict[str, int] = {}
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in sorted(archive.namelist()):
            _, of, *rest = name.split("/")
            if of != part or len(rest) != 2 or not rest[1]:
                continue
            taken[rest[0]] = taken.get(rest[0], 0) + 1
            if taken[rest[0]] <= per_class:
                target = folder / part / rest[0] / rest[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return folder / part
