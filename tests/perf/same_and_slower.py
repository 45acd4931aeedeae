"""Whether the bench sees a difference where there is one, and none where there is none.

    python tests/perf/same_and_slower.py [--profile standard] [--repeats 1] [--limit-ratio 1.03]

measures three bundles in one run of `edgecls bench`: a stack of ten equal convolutions, the same graph under another
digest, and a copy with an eleventh convolution, which costs what each of the ten does, so that its ratio should be a
little below 1.10. The interval of the twin's ratio should contain 1 (in 19 of 20 repeats), and the gate should fail the
slower copy. The exit code is 1 if a repeat shows otherwise; one of twenty may. Processes that wait for a CPU wait
equally long for either copy: on a machine with four times as many busy processes as CPUs the ratio came out as 1.05.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parents[1]))
import bundles

from edgecls.bench.gate import judge
from edgecls.bench.gate_result import Limits
from edgecls.bench.measure import measure

CROP_PX, CHANNELS, LAYERS = 64, 32, 10


def stack_of_convolutions(layers: int) -> bytes:
    """A classifier of `layers` equal convolutions between a thin one and a mean."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array(rng.normal(0, spread, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "stem"], ["x0"], pads=[1] * 4),
    ]
    tensors = [weights("stem", CHANNELS, 3, 3, 3), weights("head", CHANNELS, 3)]
    for layer in range(layers):
        tensors.append(weights(f"w{layer}", CHANNELS, CHANNELS, 3, 3))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"c{layer}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", CROP_PX, CROP_PX, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def draw_pictures(folder: Path) -> Path:
    """A few pictures of noise in three class folders."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def main() -> int:
    """Measures, judges and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit-ratio", type=float, default=1.03, help="what the gate lets through")
    arguments = parser.parse_args()
    surprises = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        net, slower = stack_of_convolutions(LAYERS), stack_of_convolutions(LAYERS + 1)
        base = bundles.write_bundle(folder / "base.edgecls", net, CROP_PX)
        twin = bundles.write_bundle(folder / "twin.edgecls", net, CROP_PX, written=1981)
        slow = bundles.write_bundle(folder / "slower.edgecls", slower, CROP_PX)
        pictures = draw_pictures(folder / "data")
        for seed in range(arguments.repeats):
            report = measure(
                [twin, slow],
                pictures,
                reference=base,
                profile=arguments.profile,
                accuracy=False,
                threads=1,
                seed=seed,
                output=folder / "report.json",
            )
            limits = Limits(max_latency_ratio=arguments.limit_ratio)
            verdicts = {run.name: run.verdict for run in judge(report, limits).runs}
            for run in report.runs[:2]:
                assert run.latency is not None
                assert run.latency.ratio_ci95 is not None
                low, high = run.latency.ratio_ci95
                expected = low <= 1 <= high if run.name == "twin" else verdicts[run.name] == "fail"
                surprises += not expected
                print(
                    f"seed {seed}: {run.name} p50 {run.latency.p50_ms:.2f} ms, ratio {run.latency.ratio:.4f} "
                    f"[{low:.4f}, {high:.4f}], gate at {arguments.limit_ratio}: {verdicts[run.name]}"
                    + ("" if expected else "  <- unexpected"),
                    flush=True,
                )
    print(f"{surprises} of {2 * arguments.repeats} were not as expected")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
