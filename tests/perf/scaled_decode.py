"""What `scaled_decode` saves, and what it changes.

    python tests/perf/scaled_decode.py BUNDLE.edgecls --data FOLDER [--enlarge 8] [--limit 100]

Every picture is encoded anew as JPEG, its sides `--enlarge` times as long (Lanczos), and prepared from these bytes with
and without, in an order drawn anew, by the bundle's preprocessing otherwise; the bundle then answers to both. Only
pictures that are large enough to be decoded scaled count. Enlarged pictures have no detail of their own: what a camera
of so many pixels would change is more than they show, and less than small pictures do that a bundle of a small
`resize_px` shrinks as much.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from edgecls.runtime import ImageSet, load
from edgecls.runtime.picture import open_picture


def jpeg(path: Path, enlarge: int) -> tuple[bytes, int]:
    """The encoded picture and its shorter side in pixels."""
    image = open_picture(path)
    if enlarge > 1:
        image = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), min(image.size)


def main() -> None:
    """Prints time, pixel difference and other answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--enlarge", type=int, default=1)
    parser.add_argument("--limit", type=int, default=100)
    given = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # enlarged pictures are no bombs
    rng = np.random.default_rng(0)
    seconds: list[list[float]] = []
    means, largest, others, megapixels = [], [], 0, []
    with load(given.bundle, threads=1) as session:
        ways = [msgspec.structs.replace(session.preprocess, scaled_decode=flag) for flag in (False, True)]
        images = ImageSet.from_folder(given.data).take(given.limit)
        for image in images.images:
            data, short_px = jpeg(images.root / image.path, given.enlarge)
            if short_px < 4 * session.preprocess.resize_px:
                continue
            crops, times = [None, None], [0.0, 0.0]
            for way in rng.permutation(2):
                began = time.perf_counter()
                crops[way] = ways[way].pixels(data)
                times[way] = time.perf_counter() - began
            difference = np.abs(np.subtract(*crops, dtype=np.int16))
            whole, scaled = session.logits(np.stack(crops))
            seconds.append(times)
            means.append(difference.mean())
            largest.append(difference.max())
            others += whole.argmax() != scaled.argmax()
            with Image.open(io.BytesIO(data)) as header:
                megapixels.append(header.width * header.height / 1e6)
    if not seconds:
        raise SystemExit(f"no picture of {given.data} is large enough: give --enlarge")
    whole_ms, scaled_ms = np.median(seconds, axis=0) * 1e3
    print(
        f"{len(seconds)} pictures of {np.median(megapixels):.2f} megapixels to {session.preprocess.resize_px} px: "
        f"whole {whole_ms:.1f} ms, scaled {scaled_ms:.1f} ms, ratio {np.median(np.divide(*np.array(seconds).T)):.2f}; "
        f"pixels differ by {np.mean(means):.2f} on average, {max(largest)} at most; "
        f"another best class for {100 * others / len(seconds):.1f} %"
    )


if __name__ == "__main__":
    main()
