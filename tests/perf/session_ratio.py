"""What a session saves: `python tests/perf/session_ratio.py BUNDLE --data PICTURES [--seconds S]`.

Ways of one kind are interleaved in one process, in an order drawn anew each round; p50 and its ratio to the first way
are printed. CPU time of the calling thread for single calls, wall time for streams, which use several threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import turns

from edgecls.runtime import Bundle, Frame, ImageSet, load
from edgecls.runtime.engines.onnxruntime import import_onnxruntime

Ways = dict[str, Callable[[], object]]


def compare(title: str, ways: Ways, seconds: float, clock: Callable[[], int]) -> None:
    """Prints p50 of each way in microseconds."""
    times = turns.in_turns(ways, seconds, clock=clock)
    first = next(iter(times.values()))
    for name, ms in times.items():
        ratio = np.median(ms / first)
        print(f"{title:28} {name:34} p50 {1e3 * np.median(ms):10.1f} us   ratio {ratio:.3f}   n {len(ms)}")


def bindings(bundle: Bundle) -> Ways:
    """ONNX Runtime's `run` and its IO binding, on the same input."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"])
    shape = [1, *session.get_inputs()[0].shape[1:]]
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    logits = np.empty((1, len(bundle.manifest.labels)), np.float32)
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    binding = session.io_binding()

    def bind() -> None:
        binding.bind_input(source, "cpu", 0, np.uint8, image.shape, image.ctypes.data)
        binding.bind_output(target, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)

    def bound() -> np.ndarray:
        session.run_with_iobinding(binding)
        return logits.copy()

    def bound_anew() -> np.ndarray:
        bind()
        return bound()

    bind()
    assert np.array_equal(session.run([target], {source: image})[0], bound())
    return {"run": lambda: session.run([target], {source: image}), "bound once": bound, "bound each call": bound_anew}


def frames(path: str) -> Ways:
    """Frames of 1280×720 in the orders that cameras have."""
    session = load(path, threads=1)
    rgb = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    bgr, bgra = rgb[:, :, ::-1].copy(), np.dstack([rgb[:, :, ::-1], rgb[:, :, 0]])
    pixels = session.preprocess.pixels
    return {
        "rgb": lambda: pixels(rgb),
        "Frame(bgr)": lambda: pixels(Frame(bgr, "bgr")),
        "bgr[..., ::-1]": lambda: pixels(bgr[:, :, ::-1]),
        "bgr turned by a copy": lambda: pixels(bgr[:, :, ::-1].copy()),
        "Frame(bgra)": lambda: pixels(Frame(bgra, "bgr")),
        "bgra turned by a copy": lambda: pixels(bgra[:, :, 2::-1].copy()),
    }


def streams(path: str, data: Path) -> Ways:
    """128 pictures, one after the other and as a stream."""
    images = ImageSet.from_folder(data).take(128)
    pictures = [(images.root / image.path).read_bytes() for image in images.images]
    one, two = load(path, threads=1), load(path, threads=2)
    assert list(one.classify_stream(pictures)) == [one.classify(picture) for picture in pictures]
    return {
        "classify, 1 thread": lambda: [one.classify(picture) for picture in pictures],
        "classify, 2 threads": lambda: [two.classify(picture) for picture in pictures],
        "stream, 1 thread, 2 workers": lambda: list(one.classify_stream(pictures)),
        "stream, 2 threads, 2 workers": lambda: list(two.classify_stream(pictures)),
    }


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path, required=True, help="JPEG files")
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    bundle = Bundle(given.bundle)
    if bundle.manifest.target == "onnxruntime":
        compare("ONNX Runtime, 1 thread", bindings(bundle), given.seconds, time.thread_time_ns)
    compare("1280x720 to crop", frames(given.bundle), given.seconds, time.thread_time_ns)
    compare("128 pictures to top-5", streams(given.bundle, given.data), given.seconds, time.perf_counter_ns)


if __name__ == "__main__":
    main()
