"""What measuring accuracy costs beside decoding and inference, and whether its memory grows with the pictures.

    python tests/perf/accuracy_cost.py REFERENCE.edgecls BUNDLE.edgecls --data FOLDER [--rounds 5] [--small 500]

Each round runs, in an order drawn anew and each in a fresh process, a bare loop (both bundles on every picture, decoded
ahead by as many threads as there are CPUs, answers thrown away) and `measure` without latency, which also reads the
digests of all files, keeps the answers, does the statistics and writes the report. The median of the ratios of wall
times is printed. Then both once more on `--small` pictures: the peak memory of the two counts is printed side by side.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgecls.bench.measure import measure
from edgecls.runtime import ImageSet, load
from edgecls.runtime.cpu import cpu_count


def bare_loop(bundles: list[str], data: Path, limit: int | None) -> None:
    """Decodes and classifies, and does nothing else."""
    images = ImageSet.from_folder(data)
    images = images if limit is None else images.take(limit)
    paths = [images.root / image.path for image in images.images]
    sessions = [load(bundle) for bundle in bundles]
    crop, *others = [session.preprocess for session in sessions]
    assert all(other == crop for other in others), "bundles of different networks: the loop would decode twice"
    ahead: deque[object] = deque()
    with ThreadPoolExecutor(cpu_count()) as pool:
        for path in [*paths, *[None] * 2 * cpu_count()]:
            if path is not None:
                ahead.append(pool.submit(crop.pixels, path))
            if (path is None or len(ahead) > 2 * cpu_count()) and ahead:
                pixels = ahead.popleft().result()
                for session in sessions:
                    session.logits(pixels)


def whole_measurement(bundles: list[str], data: Path, limit: int | None) -> None:
    """What `edgecls bench --no-latency` does."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        measure(bundles[1:], data, output=output, reference=bundles[0], latency=False, limit=limit)


WAYS = {"bare": bare_loop, "measure": whole_measurement}


def run(way: str, bundles: list[str], data: Path, limit: int | None) -> tuple[float, float]:
    """Wall seconds and peak MiB of a way in a process of its own."""
    command = [sys.executable, __file__, *bundles, "--data", str(data), "--way", way]
    done = subprocess.run(
        [*command, *([] if limit is None else ["--limit", str(limit)])], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, peak_mib = done.stdout.split()
    return float(seconds), float(peak_mib)


def main() -> None:
    """Compares, or is one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs=2)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=int, default=500)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        began = time.perf_counter()
        WAYS[given.way](given.bundles, given.data, given.limit)
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rng = np.random.default_rng(0)
    ratios, peaks = [], {}
    for number in range(given.rounds):
        seconds = {}
        for way in rng.permutation(list(WAYS)):
            seconds[way], peaks[way] = run(way, given.bundles, given.data, given.limit)
        ratios.append(seconds["measure"] / seconds["bare"])
        print(f"round {number}: bare {seconds['bare']:.1f} s, measure {seconds['measure']:.1f} s", flush=True)
    print(f"measure / bare: {np.round(sorted(ratios), 3)}, median {np.median(ratios):.3f}")
    for way, peak in peaks.items():
        small = run(way, given.bundles, given.data, given.small)[1]
        print(f"{way:8} peak memory: {small:.0f} MiB for {given.small} pictures, {peak:.0f} MiB for all")


if __name__ == "__main__":
    main()
