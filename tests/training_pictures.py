"""A folder of pictures that a network can learn within seconds: the class is the colour of a noisy blob."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 70), "red": (220, 50, 40)}


def write_pictures(root: Path, per_class: int, *, seed: int = 0, side: int = 40) -> Path:
    """Writes `root/COLOUR/NUMBER.png`."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = random.integers(0, 120, (side, side, 3))
            top, left = random.integers(0, side // 2, 2)
            pixels[top : top + side // 2, left : left + side // 2] = np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{seed}-{number}.png")
    return root


NETWORK = """
from torch import nn


def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 3),
    )
"""


def write_network(folder: Path) -> str:
    """Writes a small network with batch norms and dropout; what MODEL is then."""
    path = folder / "network.py"
    path.write_text(NETWORK)
    return f"{path}:make"
