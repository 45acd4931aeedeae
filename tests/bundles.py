"""Bundles around ONNX graphs that nobody trained."""

import hashlib
import zipfile
from pathlib import Path

import msgspec

from edgecls.runtime.bundle import GoldenSample, Manifest, Member, Passport, Provenance
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess


def write_bundle(path: Path, model: bytes, crop_px: int, written: int = 1980) -> Path:
    """Writes a bundle for ONNX Runtime with the classes ant, bee and cat.

    Args:
        path: Where to.
        model: A graph from `uint8 [n, crop, crop, 3]` to `float32 [n, 3]`.
        crop_px: Side of the crop.
        written: Year in the archive: a bundle from another year differs from this one in nothing but its digest.
    """
    members = {"golden.png": b"nobody looks at it here", "model.onnx": model}
    manifest = Manifest(
        name="net",
        target="onnxruntime",
        precision="fp32",
        preprocess=Preprocess(resize_px=crop_px, crop_px=crop_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        labels=Labels(("ant", "bee", "cat")),
        padding=None,
        artifact=("model.onnx",),
        passport=Passport(engine_version="1", isa=None, activations=None, nodes=3, nodes_int8=0),
        provenance=Provenance(
            model="net.onnx",
            checkpoint_sha256=None,
            graph_sha256=hashlib.sha256(model).hexdigest(),
            plan_sha256=None,
            quantizer=None,
            calibration=None,
            preprocess_source={},
            versions={},
        ),
        golden=(GoldenSample("golden.png", "0" * 64, (0.0, 0.0, 0.0)),),
        golden_tolerance=1e-3,
        members={name: Member(hashlib.sha256(content).hexdigest(), len(content)) for name, content in members.items()},
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {"bundle.json": msgspec.json.encode(manifest), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (written, 1, 1, 0, 0, 0)), content)
    return path
