"""Prints what edgecls-fast and simplejpeg save: the same calls with and without them.

    python tests/perf/resize_ratio.py [FOLDER_OF_JPEGS]

Interleaved, one thread, best half of the rounds; ratios are trustworthy, milliseconds are not. Without a folder the
pictures are noise of 500x375 px, smoothed, JPEG of quality 90.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edgecls.runtime import Preprocess, fast
from edgecls.runtime.bundle import Padding
from edgecls.runtime.canvas import Canvas

PICTURES, ROUNDS = 16, 40
BORDER = Padding(top_px=0, left_px=0, bottom_px=1, right_px=1, value=(124, 117, 104), pixel_bytes=4)


def jpegs(folder: Path | None) -> list[bytes]:
    """Encoded pictures."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.rglob("*.[jJ][pP]*"))[:PICTURES]]
    found = []
    for seed in range(PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (94, 125, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def print_ratio(name: str, call: Callable[[int], object], pictures: int) -> None:
    """Time of `call(picture)` with everything installed / with EDGECLS_FAST=0."""
    best: dict[str, float] = {}
    seconds: dict[str, list[float]] = {"1": [], "0": []}
    for _ in range(ROUNDS):
        for switch, found in seconds.items():
            os.environ["EDGECLS_FAST"] = switch
            start = time.perf_counter()
            for picture in range(pictures):
                call(picture)
            found.append(time.perf_counter() - start)
    for switch, found in seconds.items():
        best[switch] = statistics.mean(sorted(found)[: ROUNDS // 2]) / pictures
    print(f"{name}: {best['1'] / best['0']:.3f} ({best['1'] * 1e3:.2f} / {best['0'] * 1e3:.2f} ms)", flush=True)


def main() -> None:
    """Resize alone, decode alone, JPEG to crop, JPEG to the engine's buffer."""
    data = jpegs(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(", ".join(f"{what} by {library}" for what, library in fast.versions().items()))
    os.environ["EDGECLS_FAST"] = "0"
    from edgecls.runtime.preprocess import open_picture, read_picture

    images = [open_picture(one) for one in data]
    arrays = [np.asarray(image) for image in images]
    print(f"{len(data)} pictures, the first {images[0].width}x{images[0].height} px")
    for interpolation in ("bilinear", "bicubic"):
        preprocess = Preprocess(
            resize_px=256, crop_px=224, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        canvas = Canvas((1, 224, 224, 3), BORDER)

        def to_engine(picture: int, preprocess: Preprocess = preprocess, canvas: Canvas = canvas) -> None:
            if fast.kernel() is None:
                canvas.fill(preprocess.pixels(data[picture])[None])
            else:
                preprocess.pixels(data[picture], canvas.inside[0])

        print_ratio(f"{interpolation}, Pillow image -> crop", lambda i, p=preprocess: p.pixels(images[i]), len(data))
        print_ratio(f"{interpolation}, array -> crop", lambda i, p=preprocess: p.pixels(arrays[i]), len(data))
        print_ratio(f"{interpolation}, JPEG -> crop", lambda i, p=preprocess: p.pixels(data[i]), len(data))
        print_ratio(f"{interpolation}, JPEG -> padded RGBX buffer", to_engine, len(data))
    print_ratio("JPEG -> pixels of the whole picture", lambda i: read_picture(data[i]), len(data))


if __name__ == "__main__":
    main()
