"""Prints what the preprocessing costs against resize-then-crop, and what importing the runtime costs.

    python tests/perf/preprocess_ratio.py [FOLDER_OF_PICTURES]

Interleaved, one thread; ratios are trustworthy, milliseconds are not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from edgecls.runtime import Preprocess
from edgecls.runtime.resize import _PILLOW_FILTERS

PICTURES = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet-dev"
IMPORT = """
import time
start = time.perf_counter()
import edgecls.runtime
print(time.perf_counter() - start)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def resize_then_crop(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The usual code: Pillow's resize of the whole, then the crop."""
    short = min(image.size)
    width, height = (int(preprocess.resize_px * side / short) for side in image.size)
    resized = image.resize((width, height), _PILLOW_FILTERS[preprocess.interpolation])
    left, top = round((width - preprocess.crop_px) / 2), round((height - preprocess.crop_px) / 2)
    return np.array(resized.crop((left, top, left + preprocess.crop_px, top + preprocess.crop_px)))


def print_ratios(folder: Path, pictures: int = 24, rounds: int = 15) -> None:
    """Best half of the rounds, both forms after each other on each picture."""
    images = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.[jJ][pP]*"))[:pictures]]
    for interpolation in ("bilinear", "bicubic"):
        preprocess = Preprocess(
            resize_px=256, crop_px=224, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        times: dict[str, list[float]] = {"usual": [], "ours": []}
        for _ in range(rounds):
            usual_s = ours_s = 0.0
            for image in images:
                start = time.perf_counter()
                usual = resize_then_crop(image, preprocess)
                middle = time.perf_counter()
                ours = preprocess.pixels(image)
                ours_s += time.perf_counter() - middle
                usual_s += middle - start
                assert np.array_equal(usual, ours)
            times["usual"].append(usual_s)
            times["ours"].append(ours_s)
        best = {name: statistics.mean(sorted(values)[: rounds // 2]) for name, values in times.items()}
        print(
            f"{interpolation}: two passes / resize-then-crop = {best['ours'] / best['usual']:.3f} "
            f"({best['usual'] / len(images) * 1e3:.2f} ms a picture, the usual code)"
        )


def print_import(launches: int = 7) -> None:
    """Median time and the most memory of `import edgecls.runtime` in fresh processes, warm."""
    seconds, kilobytes = [], []
    for _ in range(launches):
        lines = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(lines[0]))
        kilobytes.append(int(lines[1]))
    print(f"import edgecls.runtime: {statistics.median(seconds):.3f} s (best {min(seconds):.3f}), ", end="")
    print(f"{max(kilobytes) / 1000:.1f} MB resident at most")


if __name__ == "__main__":
    print_ratios(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
    print_import()
