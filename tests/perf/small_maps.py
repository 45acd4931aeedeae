"""Steps of a training with `SmallMaps` against those without, in turns.

python tests/perf/small_maps.py [--arch torchvision:resnet18] [--px 32 48 64] [--batch 128] [--seconds 20]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from edgecls.models.architecture import find_architecture
from edgecls.models.small_maps import SmallMaps

sys.path.insert(0, str(Path(__file__).parent))
from turns import in_turns


def step(network, optimizer, pixels, labels, bf16, mode):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), mode():
        logits = network(pixels)
    optimizer.zero_grad()
    torch.autograd.backward(torch.nn.functional.cross_entropy(logits.float(), labels))
    optimizer.step()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="torchvision:resnet18")
    parser.add_argument("--px", type=int, nargs="+", default=[32, 48, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    architecture = find_architecture(arguments.arch)
    for bf16 in (False, True):
        for px in arguments.px:
            network = architecture.build(px)
            architecture.fit_classes(network, 10)
            network.to(memory_format=torch.channels_last).train()
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
            pixels = torch.randn(arguments.batch, 3, px, px).to(memory_format=torch.channels_last)
            labels = torch.randint(10, (arguments.batch,))
            run = partial(step, network, optimizer, pixels, labels, bf16)
            times = in_turns(
                {"torch": partial(run, contextlib.nullcontext), "SmallMaps": partial(run, SmallMaps)},
                arguments.seconds,
            )
            ratios = times["torch"] / times["SmallMaps"]
            low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            print(
                f"{arguments.arch} {'bf16' if bf16 else 'fp32'} {px} px, {arguments.batch} pictures a step: "
                f"{np.median(times['torch']):.0f} ms, {middle:.2f} x as fast with products ({low:.2f} to {high:.2f}, "
                f"{len(ratios)} rounds)",
                flush=True,
            )


if __name__ == "__main__":
    main()
