"""What the main job costs and gains: EfficientNet-Lite0, one thread, batch 1, everything timed in turns.

    python tests/perf/main_job.py [--seconds 20] [--bundles FOLDER]

prints the wall time and memory of one INT8 export, then ratios: INT8 against fp32 on each engine, the session against
the bare engine call, and JPEG bytes to top-5 against the code that people usually write. Milliseconds drift on a shared
machine; the ratios, formed within rounds of turns, hold.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import lite

from edgecls.bench.device import device
from edgecls.runtime import ImageSet, Session, load

EDGECLS = Path(sys.executable).with_name("edgecls")
ROUND = 5
"""Calls that one side makes before the other has its turn."""


def export(folder: Path, target: str, precision: str, calibration: Path) -> tuple[Path, float, float]:
    """Exports by the command line; the bundle, wall seconds and peak GiB of the process."""
    path = folder / f"lite0-{target}-{precision}.edgecls"
    command = [
        str(EDGECLS), "export", "timm:tf_efficientnet_lite0", "--checkpoint", str(lite.weights()), "--match", "order",
        "--labels", str(lite.LABELS), "--target", target, "--quiet", "-o", str(path),
    ]  # fmt: skip
    if precision == "int8":
        command += ["--int8", "--calibration", str(calibration), "--calibration-size", str(lite.CALIBRATION_SIZE)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    seconds = time.perf_counter() - start
    return path, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def in_turns(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median over rounds of second / first."""
    pair = (first, second)
    for call in pair:
        for _ in range(10):
            call()
    rounds = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        medians = [0.0, 0.0]
        # The order alternates, so that neither side always finds the caches as the other left them.
        for side in (0, 1) if len(rounds) % 2 else (1, 0):
            times = []
            for _ in range(ROUND):
                start = time.perf_counter_ns()
                pair[side]()
                times.append(time.perf_counter_ns() - start)
            medians[side] = float(np.median(times)) / 1e6
        rounds.append(medians)
    table = np.asarray(rounds)
    one, other = np.median(table, axis=0)
    return float(one), float(other), float(np.median(table[:, 1] / table[:, 0]))


def usual_code(data: bytes) -> Callable[[], object]:
    """Pillow, torchvision's transforms, fp32 ONNX Runtime on the network as torch exports it, NumPy for the top 5."""
    import io

    import onnxruntime
    import torch
    from PIL import Image

    from edgecls.models import torchvision_operators  # noqa: F401  torchvision may not load without it

    from torchvision import transforms  # isort: skip

    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    torch.set_num_threads(1)
    program = torch.onnx.export(
        lite.opened().source, (torch.zeros(1, 3, 224, 224),), dynamo=True, input_names=["x"], verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)

    def classify() -> object:
        tensor = transform(Image.open(io.BytesIO(data)).convert("RGB"))
        logits = session.run(None, {"x": tensor[None].numpy()})[0][0]
        scores = np.exp(logits - logits.max())
        best = np.argsort(-scores)[:5]
        return best, scores[best] / scores.sum()

    return classify


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="timed seconds of each pair")
    parser.add_argument("--bundles", type=Path, help="where bundles of an earlier run are, or shall be kept")
    arguments = parser.parse_args()
    if reason := lite.missing():
        sys.exit(f"cannot measure: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.bundles or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        calibration, _ = lite.split(Path(scratch))
        machine = device()
        print(
            f"{machine.cpu}, {machine.cores} CPUs, {machine.isa}; one thread, batch 1, {arguments.seconds:g} s a pair"
        )
        bundles = {}
        for target in ("onnxruntime", "openvino"):
            for precision in ("int8", "fp32"):
                path = folder / f"lite0-{target}-{precision}.edgecls"
                if not path.exists():
                    path, seconds, gib = export(folder, target, precision, calibration)
                    print(f"export {target} {precision}: {seconds:.1f} s, peak {gib:.2f} GiB so far")
                bundles[target, precision] = load(path, threads=1)
    compare(bundles, arguments.seconds)


def compare(bundles: dict[tuple[str, str], Session], seconds: float) -> None:
    """Prints the ratios."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    image = next(i for i in ImageSet.from_folder(lite.PICTURES).images if size_of(i.path) == (500, 375))
    data = (lite.PICTURES / image.path).read_bytes()
    crop = bundles["onnxruntime", "fp32"].preprocess.pixels(data)[None]
    for target in ("onnxruntime", "openvino"):
        fp32, int8 = (partial(bundles[target, precision].logits, crop) for precision in ("fp32", "int8"))
        one, other, ratio = in_turns(int8, fp32, seconds)
        print(f"{target}: fp32 {other:.2f} ms, int8 {one:.2f} ms: int8 is {ratio:.2f} × as fast")
        bare = bundles[target, "int8"]
        ready = bare.pad(crop, bare.bundle.manifest.padding)
        one, other, ratio = in_turns(partial(bare.engine.infer, ready), int8, seconds)
        print(f"{target}: bare int8 engine {one:.3f} ms, session {other:.3f} ms: {100 * (ratio - 1):+.1f} %")
    usual = usual_code(data)
    for target in ("onnxruntime", "openvino"):
        one, other, ratio = in_turns(partial(bundles[target, "int8"].classify, data), usual, seconds)
        print(f"JPEG to top-5: usual code {other:.2f} ms, {target} int8 {one:.2f} ms: {ratio:.2f} × as fast")


def size_of(path: str) -> tuple[int, int]:
    """Width and height of a picture, pixels."""
    from PIL import Image

    with Image.open(lite.PICTURES / path) as picture:
        return picture.size


if __name__ == "__main__":
    main()
