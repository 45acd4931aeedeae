"""One file that holds a classifier: its record, and the reader that trusts nothing in it.

A bundle is a zip archive of stored (not compressed) members that is read in place. `bundle.json` describes every other
member; the reader checks each against it.
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from edgecls.runtime.cpu import Isa
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess

SCHEMA = "edgecls.bundle/1"

Precision = Literal["fp32", "fp16", "int8"]


class Member(msgspec.Struct, frozen=True):
    """What `bundle.json` says of another member of the archive."""

    sha256: str
    """Of the member's bytes, hex."""
    size_bytes: int


class Padding(msgspec.Struct, frozen=True, kw_only=True):
    """The border that the session puts around the crop before the engine sees it.

    The first convolution of such a graph has no padding of its own: zero padding after normalisation means the
    channel means, and only the caller can write three different bytes.
    """

    top_px: int
    left_px: int
    bottom_px: int
    right_px: int
    value: tuple[int, int, int]
    """RGB, 0..255: the rounded means."""


class GoldenSample(msgspec.Struct, frozen=True):
    """An input whose pixels and logits are known, replayed by `edgecls verify`."""

    image: str
    """Name of the PNG member."""
    pixels_sha256: str
    """Of the crop's bytes, `uint8 [crop, crop, 3]`, RGB, hex."""
    logits: tuple[float, ...]
    """As the engine gave them where the bundle was made, float32."""


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which pictures calibrated a quantized graph."""

    sha256: str
    """Digest of the image set."""
    seed: int
    images: tuple[str, ...]
    """Content hash of every picture, hex, sorted: an evaluation set may hold none of them."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bundle comes from."""

    model: str
    """As it was asked for: `timm:tf_efficientnet_lite0`, `net.onnx`, …"""
    checkpoint_sha256: str | None
    """Of the checkpoint file's bytes; None where the model needed no file."""
    graph_sha256: str
    """Of the float graph that the plan and the artifact were made from."""
    plan_sha256: str | None
    """Of `plan.json`; None for a float bundle."""
    quantizer: str | None
    """`edgecls` or `nncf`; None for a float bundle."""
    calibration: CalibrationRecord | None
    preprocess_source: dict[str, str]
    """For each field of the preprocessing, where it came from: `timm pretrained_cfg`, `--resize`, …"""
    versions: dict[str, str]
    """edgecls and the packages that took part: name to version."""


class Passport(msgspec.Struct, frozen=True, kw_only=True):
    """What the artifact is valid on, and what it is made of."""

    engine_version: str
    """Version of the engine that the artifact was checked with."""
    isa: Isa | None
    """Instruction set that an INT8 graph was made for; None where it does not matter."""
    activations: Literal["uint8", "int8"] | None
    """Type of quantized activations; None for a float artifact."""
    nodes: int
    """Operations in the engine's optimised graph; 0 where the engine does not tell."""
    nodes_int8: int
    """Those that compute on integers."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """`bundle.json`."""

    name: str
    """For people: `tf_efficientnet_lite0-onnxruntime-int8`."""
    target: str
    """Name of the engine that runs it, as in `runtime/engines/`."""
    precision: Precision
    preprocess: Preprocess
    labels: Labels
    padding: Padding | None
    """None where the engine takes the crop as it is."""
    artifact: tuple[str, ...]
    """The members that the engine loads, in the order that it wants."""
    passport: Passport
    provenance: Provenance
    golden: tuple[GoldenSample, ...]
    golden_tolerance: float
    """Largest |difference| of a logit that `verify` accepts."""
    members: dict[str, Member]
    """Every member but `bundle.json`."""


class Bundle:
    """An open bundle: its record, and its members' bytes.

    Attributes:
        path: The file.
        manifest: The checked `bundle.json`.
        sha256: Digest of the whole file, hex: the identity of the bundle in reports.
        size_bytes: Size of the whole file.
    """

    path: str
    manifest: Manifest
    sha256: str
    size_bytes: int

    def __init__(self, path: str | os.PathLike[str]) -> None:
        raise NotImplementedError

    def read(self, member: str) -> bytes:
        """The bytes of a member, checked against its size and digest."""
        raise NotImplementedError
