"""Writes the seeds that fuzzing begins with: `PYTHONPATH=tests python tests/fuzz/corpus.py`.

What was found later lies beside them, as `found-...`, and stays.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import hostile_pictures as hostile
import msgspec
import numpy as np
from bundles import write_bundle
from fuzz.doors import FILES, MEMBERS
from PIL import Image

from edgecls.runtime.signature import comment_from_signature

CORPUS = Path(__file__).parent / "corpus"


def pictures() -> dict[str, bytes]:
    """One of every format and mode that is read, and small ones of every hostile kind."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((23, 17))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "JPEG": [("RGB", {"exif": exif}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True, "subsampling": 0})],
        "PNG": [("RGB", {"exif": exif}), ("RGBA", {}), ("P", {"transparency": 3}), ("1", {}), ("LA", {})],
        "WEBP": [("RGB", {"exif": exif}), ("RGBA", {"lossless": True})],
        "BMP": [("RGB", {}), ("P", {}), ("1", {})],
        "GIF": [("P", {"comment": b"hello"}), ("L", {"interlace": True})],
        "TIFF": [
            *((mode, {}) for mode in ("RGB", "1", "CMYK")),
            *(("RGB", {"compression": name, "exif": exif}) for name in ("jpeg", "tiff_lzw", "tiff_deflate")),
            *(("1", {"compression": name}) for name in ("group3", "group4")),
            ("RGB", {"big_tiff": True}),
        ],
    }
    made = {}
    for kind, variants in kinds.items():
        for index, (mode, options) in enumerate(variants):
            buffer = io.BytesIO()
            rgb.convert(mode).save(buffer, kind, **options)
            made[f"{kind.lower()}-{index}-{mode}"] = buffer.getvalue()
    frames = io.BytesIO()
    rgb.save(frames, "WEBP", save_all=True, append_images=[rgb.rotate(180)])
    return {
        **made,
        "webp-animated": frames.getvalue(),
        "scans": hostile.jpeg_of_scans(64, 20),
        "segments": hostile.jpeg_of_comments(20),
        "chunks": hostile.png_of_chunks(20),
        "text": hostile.png_of_text(100_000),
        "tile": hostile.tiff_of_tile(1000),
        "tags": hostile.tiff_of_tags(20, 1000),
        "canvas": hostile.webp_of_canvas(),
        "comment": hostile.gif_of_comment(200),
        "runs": hostile.bmp_of_runs(64),
    }


def bundles(folder: Path) -> dict[str, bytes]:
    """Archives as they should be and as they should not."""
    path = write_bundle(folder / ".seed", FILES["model.onnx"], 8)
    whole = path.read_bytes()
    path.unlink()
    comment = comment_from_signature(bytes(64))
    twice = io.BytesIO(whole)
    with zipfile.ZipFile(twice, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../up", b"x" * 100)
    return {
        "whole": whole,
        "signed": whole[:-2] + len(comment).to_bytes(2, "little") + comment,
        "deflated": twice.getvalue(),
        "half": whole[: len(whole) // 2],
        "empty": b"PK\5\6" + bytes(18),
    }


def manifests(whole: bytes) -> dict[str, bytes]:
    """Records of every shape."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        record = json.loads(archive.read("bundle.json"))
    record["members"] = msgspec.to_builtins(MEMBERS)
    border = {"top_px": 1, "left_px": 1, "bottom_px": 2, "right_px": 2, "value": [1, 2, 3], "pixel_bytes": 4}
    built = {"dialect": "weak", "minimum_version": "8.6", "build": "on-device", "flags": ["INT8"]}
    calibrated = {"sha256": "0" * 64, "seed": 0, "images": ["0" * 64]}
    rich = {
        **record,
        "padding": border,
        "passport": {**record["passport"], "isa": "arm64", "activations": "int8", "tensorrt": built},
        "provenance": {**record["provenance"], "calibration": calibrated, "versions": {"edgecls": "1"}},
        "labels": {"names": ["ant", "bee", "日本 🎌"], "ids": ["a", "b", "c"]},
    }
    records = {"plain": record, "rich": rich, "newer": {**record, "schema": "edgecls.bundle/2"}}
    return {name: json.dumps(one).encode() for name, one in records.items()}


def plans() -> dict[str, bytes]:
    """What `edgecls inspect` tells of, and what nobody has measured."""
    block = {"name": "stem", "kl": 0.004, "flips": 3, "cost": 0.02}
    blocks = [block, {**block, "name": "head $x", "kl": -0.001, "cost": None}]
    plain = {
        "ranges": "auto",
        "tensors": {"x": {"minimum": -1.5, "maximum": 6, "asymmetric": [-1, 4]}},
        "float_nodes": {"head": "it loses most"},
        "sensitivity": {"target": "onnxruntime", "n": 9, "kl": 0.01, "flips": 1, "ratio": 0.8, "blocks": blocks},
    }
    huge = {**plain, "sensitivity": {**plain["sensitivity"], "blocks": [{**block, "kl": 1e308}]}}
    return {
        **{name: json.dumps(one).encode() for name, one in {"plain": plain, "huge": huge}.items()},
        "bare": json.dumps({**plain, "sensitivity": None}).encode(),
        "nested": b'{"ranges":"auto","tensors":{},"float_nodes":{},"x":' + b"[" * 60_000,
        "unknown": b"{}",
    }


def label_files() -> dict[str, bytes]:
    """Of every form."""
    return {
        "names": b"cat\nd\xc3\xb6g\n",
        "tabs": "\ufeffa\tcat\r\nb\tgreat dane\r\n".encode(),
        "wordnet": b"n01440764 tench, T\nn01443537 goldfish\n",
        "controls": b"cat\n\x1b[31mdog\n\n",
    }


def main() -> int:
    """Writes every seed."""
    CORPUS.mkdir(exist_ok=True)
    archives = bundles(CORPUS)
    seeds = {
        "picture": pictures(),
        "bundle": archives,
        "manifest": manifests(archives["whole"]),
        "plan": plans(),
        "labels": label_files(),
    }
    for door, files in seeds.items():
        (CORPUS / door).mkdir(exist_ok=True)
        for name, data in files.items():
            (CORPUS / door / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
