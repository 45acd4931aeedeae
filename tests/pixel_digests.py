"""Random pictures through the compiled and the pure resize: the same script on every CPU, the same digests.

`python pixel_digests.py COUNT` prints JSON; it fails where the two differ. No process is started.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys

import numpy as np
from PIL import Image

from edgecls.runtime import Preprocess, fast

BLOCK = 50
"""Pictures to a digest: where one differs, `drawn` of these makes them again."""


def drawn(number: int) -> tuple[np.ndarray | bytes, Preprocess]:
    """Picture `number` and what is done to it: noise of any shape, every fourth as a JPEG file."""
    rng = np.random.default_rng(number)
    width, height = (int(rng.integers(1, 6 if rng.random() < 0.1 else 320)) for _ in range(2))
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    description = Preprocess(
        mode=("shorter", "squash")[rng.integers(2)],
        resize_px=int(rng.integers(1, 300)),
        crop_px=int(rng.integers(1, 256)),
        interpolation=("bilinear", "bicubic")[rng.integers(2)],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    if number % 4:
        return picture, description
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=int(rng.integers(3)))
    return file.getvalue(), description


def pixels(number: int) -> bytes:
    """Of the crop that picture `number` gives, the same by both ways."""
    picture, description = drawn(number)
    found = []
    for switch in ("1", "0"):
        os.environ["EDGECLS_FAST"] = switch
        found.append(description.pixels(picture).tobytes())
    assert found[0] == found[1], f"compiled and pure differ: {number}, {description}"
    return found[0]


def digests(count: int) -> list[str]:
    """SHA-256 of the pixels of every block of pictures."""
    blocks = [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    return [hashlib.sha256(b"".join(pixels(number) for number in block)).hexdigest() for block in blocks]


if __name__ == "__main__":
    libraries = fast.versions()
    print(json.dumps({"machine": platform.machine(), "libraries": libraries, "sha256": digests(int(sys.argv[1]))}))
