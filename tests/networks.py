"""Small networks that hold what the big ones are made of. They are random: good for structure and parity alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgecls.calibration.collect import collect_histograms
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, make_plan
from edgecls.models import Classifier
from edgecls.runtime import Labels, Preprocess
from edgecls.runtime.bundle import CalibrationRecord

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, 8, 1)
        self.expand = nn.Conv2d(8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = nn.functional.hardsigmoid(self.expand(nn.functional.relu(self.reduce(self.pool(x)))))
        return x * gate


class Block(nn.Module):
    """Expansion, depthwise, squeeze-and-excitation, projection, residual: a block of MobileNetV3."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        wide = channels * 2
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            activation(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            activation(),
            SqueezeExcite(wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class SmallNet(nn.Module):
    """Convolutions: stem 1, blocks 2 × 5 (two of each in squeeze-and-excitation), head 1; one linear layer."""

    def __init__(self, classes: int = 7, activation: type[nn.Module] = nn.Hardswish, padding: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=padding, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.blocks = nn.Sequential(Block(16, activation), Block(16, activation))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU())
        self.fc = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.pool(self.blocks(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def settle(module: nn.Module, seed: int = 0, side: int = 32) -> nn.Module:
    """Gives batch norms statistics (of noise), so that activations have ordinary sizes; then evaluation mode."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.5)
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, side, side))
    return module.eval().requires_grad_(False)


def classifier(module: nn.Module, crop_px: int = 32, classes: int = 7, **preprocess: object) -> Classifier:
    """A classifier record around a module."""
    return Classifier(
        name="small",
        model="tests:small",
        source=module,
        preprocess=Preprocess(**{"resize_px": crop_px + 4, "crop_px": crop_px, **IMAGENET, **preprocess}),
        preprocess_source={},
        labels=Labels(tuple(f"class {i}" for i in range(classes))),
        checkpoint_sha256=None,
    )


def plan_of(graph: Graph, crops: np.ndarray) -> QuantPlan:
    """A plan from crops `uint8 [n, side, side, 3]`."""
    histograms = collect_histograms(graph, [crops], lambda steps: None, threads=1)
    return make_plan(graph, histograms, CalibrationRecord(sha256="0" * 64, seed=0, images=()))
