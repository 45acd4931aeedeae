"""Fault operation: a stand-in of TensorRT builds an engine into the cache and into a bundle that was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cuda_stand_in import Gpu
from tensorrt_stand_in import graph_bytes, install, write_unbuilt_bundle

from edgecls.runtime import Bundle
from edgecls.runtime.engine_build import BuildOptions, build_bundle
from edgecls.runtime.progress import SilentProgress


def prepare(folder: Path) -> None:
    write_unbuilt_bundle(folder / "net.edgecls", graph=graph_bytes(ballast="x" * 100_000))
    write_unbuilt_bundle(folder / "built.edgecls")


def run(folder: Path) -> None:
    os.environ["EDGECLS_CACHE"] = str(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        install(patch, "10.3", Gpu())
        build_bundle(Bundle(folder / "net.edgecls"), BuildOptions(), folder / "built.edgecls", SilentProgress())
