"""What a device pays for classifying pictures: a table of disk, memory and time for each engine, with and without us.

    python tests/perf/footprint.py FOLDER [--launches 7] [--tflite FILE]

FOLDER holds what tests/perf/main_job.py --bundles FOLDER makes: EfficientNet-Lite0 as INT8 bundles. Each row is a fresh
virtual environment with nothing but what it names (installed from the package index), and a program that classifies a
JPEG picture: ours, or the dozen lines that people write around the engine. Columns: MB that the environment's packages
take, median seconds of the imports, peak resident MB after 50 pictures (VmHWM), median seconds from the start of the
process to the first answer, and p50 of a picture on one thread. Launches of all rows take turns.

The plain engines run the fp32 graph that torch exports; LiteRT runs FILE, or is only installed and imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import lite
import main_job

from edgecls.bench.device import device

REPOSITORY = Path(__file__).parents[2]

PROGRAM = """
import json, sys, time
began = time.perf_counter()
{imports}
imported = time.perf_counter() - began
model, picture = sys.argv[1:]
first, times = None, []
if model:
{loading}
    for _ in range(50):
        start = time.perf_counter()
        classify(picture)
        times.append(time.perf_counter() - start)
        first = first or time.time()
peak = next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([imported, first, peak, sorted(times)[25] * 1000 if times else None]))
"""

USUAL = """
    def tensor(path):
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        return ((pixels - 127.5) / 127.5)[None]
"""

OURS = "    classify = load(model, threads=1).classify"
# With the engine, which edgecls imports when a bundle needs it and the others at once.
OURS_ONNXRUNTIME = (
    "from edgecls.runtime import load\nfrom edgecls.runtime.engines.onnxruntime import import_onnxruntime\n"
    "import_onnxruntime()",
    OURS,
)
OURS_OPENVINO = ("import openvino\nfrom edgecls.runtime import load", OURS)
ONNXRUNTIME = (
    "import numpy as np, onnxruntime\nfrom PIL import Image",
    USUAL + "    options = onnxruntime.SessionOptions()\n    options.intra_op_num_threads = 1\n"
    "    session = onnxruntime.InferenceSession(model, options)\n"
    "    classify = lambda path: np.argsort(session.run(None, {'x': tensor(path).transpose(0, 3, 1, 2)})[0][0])[-5:]",
)
OPENVINO = (
    "import numpy as np, openvino\nfrom PIL import Image",
    USUAL + "    config = {'INFERENCE_NUM_THREADS': 1, 'PERFORMANCE_HINT': 'LATENCY'}\n"
    "    request = openvino.Core().compile_model(model, 'CPU', config).create_infer_request()\n"
    "    classify = lambda path: np.argsort(request.infer([tensor(path).transpose(0, 3, 1, 2)])[0][0])[-5:]",
)
LITERT = (
    "import numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\nfrom PIL import Image",
    USUAL + "    interpreter = Interpreter(model, num_threads=1)\n    interpreter.allocate_tensors()\n"
    "    source, = interpreter.get_input_details()\n    target, = interpreter.get_output_details()\n"
    "    channels_first = source['shape'][1] == 3\n"
    "    def classify(path):\n"
    "        image = tensor(path).transpose(0, 3, 1, 2) if channels_first else tensor(path)\n"
    "        interpreter.set_tensor(source['index'], image)\n        interpreter.invoke()\n"
    "        return np.argsort(interpreter.get_tensor(target['index'])[0])[-5:]",
)


@dataclass
class Row:
    """One way to classify pictures."""

    name: str
    requirements: list[str]
    model: str
    """Empty where there is none to run."""
    program: tuple[str, str]
    """Imports, and what makes `classify`."""


def rows(folder: Path, tflite: Path | None) -> list[Row]:
    """Ours, and the engines alone."""
    ours, float_onnx = str(REPOSITORY), str(folder / "lite0-fp32.onnx")
    int8 = {target: str(folder / f"lite0-{target}-int8.edgecls") for target in ("onnxruntime", "openvino")}
    plain = ["numpy", "pillow"]
    fast = str(REPOSITORY / "fast")
    return [
        Row("edgecls[onnxruntime], INT8", [f"{ours}[onnxruntime]"], int8["onnxruntime"], OURS_ONNXRUNTIME),
        Row(
            "the same and edgecls-fast",
            [f"{ours}[onnxruntime,fast]", fast],
            int8["onnxruntime"],
            OURS_ONNXRUNTIME,
        ),
        Row("onnxruntime, fp32", [*plain, "onnxruntime"], float_onnx, ONNXRUNTIME),
        Row("edgecls[openvino], INT8", [f"{ours}[openvino]"], int8["openvino"], OURS_OPENVINO),
        Row("the same and edgecls-fast", [f"{ours}[openvino,fast]", fast], int8["openvino"], OURS_OPENVINO),
        Row("openvino, fp32", [*plain, "openvino"], float_onnx, OPENVINO),
        Row("ai-edge-litert", [*plain, "ai-edge-litert"], "" if tflite is None else str(tflite.resolve()), LITERT),
    ]


def install(requirements: list[str], folder: Path) -> tuple[Path, float]:
    """A fresh environment; its Python, and the MB of its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *constraints]
    subprocess.run([*pip, *requirements], check=True)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # A file that two packages list, or a bytecode file, is there once for the device too.
    return python, sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6


def launch(python: Path, row: Row, picture: Path) -> list[float | None]:
    """Import seconds, seconds to the first answer, peak MB, p50 in ms of one fresh process."""
    program = PROGRAM.format(imports=row.program[0], loading=row.program[1])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    began = time.time()
    done = subprocess.run(
        [str(python), "-c", program, row.model, str(picture)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=python.parent, env=environment,
    )  # fmt: skip
    imported, first, peak, p50 = json.loads(done.stdout.splitlines()[-1])
    return [imported, None if first is None else first - began, peak, p50]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--launches", type=int, default=7)
    parser.add_argument("--tflite", type=Path, help="Lite0 as LiteRT takes it: float input in [-1, 1]")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if not (folder / "lite0-fp32.onnx").exists():
        (folder / "lite0-fp32.onnx").write_bytes(lite.exported())
    pictures = sorted(path for path in lite.PICTURES.rglob("*") if path.is_file())
    picture = next(path for path in pictures if main_job.size_of(str(path)) == (500, 375))
    table = rows(folder, given.tflite)
    with tempfile.TemporaryDirectory() as scratch:
        installed = [install(row.requirements, Path(scratch) / str(number)) for number, row in enumerate(table)]
        for (python, _), row in zip(installed, table, strict=True):
            launch(python, row, picture)  # writes the bytecode, warms the page cache
        launches: list[list[list[float | None]]] = [[] for _ in table]
        for _ in range(given.launches):
            for measured, (python, _), row in zip(launches, installed, table, strict=True):
                measured.append(launch(python, row, picture))
    print(f"{device().cpu}, one thread, {given.launches} launches in turns\n")
    print("| | installed MB | import s | peak MB | first answer s | p50 ms |\n|---|---|---|---|---|---|")
    for row, (_, size), measured in zip(table, installed, launches, strict=True):
        columns = list(zip(*measured, strict=True))
        cells = [
            "" if column[0] is None else f"{statistics.median(column):.{digits}f}"
            for column, digits in zip(columns, (2, 2, 0, 1), strict=True)
        ]
        imported, first, peak, p50 = cells
        print(f"| {row.name} | {size:.0f} | {imported} | {peak} | {first} | {p50} |")


if __name__ == "__main__":
    main()
