"""Steps of a training with `keep_freed_memory` against those without, in fresh processes that take turns.

python tests/perf/training_memory.py [--arch torchvision:mobilenet_v3_small] [--px 52] [--bf16] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch

from edgecls.models.architecture import find_architecture
from edgecls.models.training_memory import keep_freed_memory

_BATCH, _STEPS, _WARM_UP = 128, 25, 5


def pictures_per_second(arch, px, bf16):
    """Of forward, backward and AdamW on random pictures, which lie in memory."""
    architecture = find_architecture(arch)
    network = architecture.build(px)
    architecture.fit_classes(network, 10)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    pixels = torch.randn(_BATCH, 3, px, px).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (_BATCH,))
    for step in range(_WARM_UP + _STEPS):
        if step == _WARM_UP:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(network(pixels), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return _BATCH * _STEPS / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--px", type=int, default=52)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", choices=["kept", "default"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        if arguments.turn == "kept":
            keep_freed_memory()
        print(pictures_per_second(arguments.arch, arguments.px, arguments.bf16))
        return
    ratios = []
    for number in range(arguments.rounds):
        ways = ["kept", "default"] if number % 2 else ["default", "kept"]
        rates = {way: float(subprocess.check_output([sys.executable, *sys.argv, "--turn", way])) for way in ways}
        ratios.append(rates["kept"] / rates["default"])
        print(
            f"kept {rates['kept']:.0f} pictures/s, default {rates['default']:.0f}, ratio {ratios[-1]:.3f}", flush=True
        )
    print(f"ratio, median of {len(ratios)}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
