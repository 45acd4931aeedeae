"""Fault operation: a small network is exported over an earlier bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from networks import SmallNet, classifier, settle

from edgecls.export.job import export_bundle

OLD = b"what an earlier export wrote"


def prepare(folder: Path) -> None:
    (folder / "net.edgecls").write_bytes(OLD)


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    export_bundle(classifier(settle(SmallNet())), target="onnxruntime", precision="fp32", output=folder / "net.edgecls")
