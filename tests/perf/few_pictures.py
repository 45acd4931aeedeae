"""What ImageNet weights are worth: EfficientNet-Lite0 on 20 pictures of each CIFAR-10 class, with them and without.

    python tests/perf/few_pictures.py [--crop 128] [--epochs 12] [--test 100]

runs `edgecls train` twice with one budget and `edgecls evaluate` on test pictures, and prints wall times and top-1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parents[1]))
import cifar10
import lite

EDGECLS = Path(sys.executable).with_name("edgecls")
ARCH = "timm:tf_efficientnet_lite0"


def main() -> None:
    """Trains, evaluates and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--crop", default="128")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", type=int, default=100, help="test pictures a class")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train = cifar10.unpack(folder, "train", 20)
        test = cifar10.unpack(folder, "test", arguments.test)
        budgets = {
            "fine-tuned": [
                "--checkpoint", str(lite.weights()), "--match", "order", "--head-epochs", "3",
                "--epochs", str(arguments.epochs),
            ],
            "from scratch": ["--from-scratch", "--epochs", str(arguments.epochs + 3)],
        }  # fmt: skip
        for name, options in budgets.items():
            weights = folder / f"{name.replace(' ', '-')}.safetensors"
            command = [
                str(EDGECLS), "train", "--data", str(train), "--arch", ARCH, "--batch-size", "32", "--patience", "100",
                "--resize", arguments.crop, "--crop", arguments.crop, "-o", str(weights), "--quiet", *options,
            ]  # fmt: skip
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            seconds = time.perf_counter() - began
            evaluate = [str(EDGECLS), "evaluate", str(weights), "--data", str(test), "--json", "--quiet"]
            printed = subprocess.run(evaluate, check=True, capture_output=True, text=True, cwd=folder).stdout
            found[name] = 100 * json.loads(printed)["metrics"]["top1"]
            print(f"{name}: {found[name]:.1f} % of {10 * arguments.test} test pictures, {seconds:.0f} s", flush=True)
    print(f"difference: {found['fine-tuned'] - found['from scratch']:.1f} points")


if __name__ == "__main__":
    main()
