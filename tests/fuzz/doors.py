"""The doors through which strangers' bytes come in, and what is promised behind each.

Whatever the bytes are: nothing but an `EdgeclsError` comes out, and an input of at most `MAX_BYTES` takes at most
`SECONDS` of CPU time and `MEMORY_BYTES` of memory beyond what was loaded before.
"""

from __future__ import annotations

import atexit
import functools
import io
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import msgspec
import numpy as np
from bundles import write_bundle

from edgecls.commands import inspect
from edgecls.runtime import Bundle, EdgeclsError, InputError, Labels, PictureLimits, Preprocess
from edgecls.runtime.bundle import Manifest
from edgecls.runtime.bundle_writer import members_of
from edgecls.runtime.fast import jpeg_decoder, kernel

MAX_BYTES = 64 << 10
SECONDS = 5.0
MEMORY_BYTES = 256 << 20

LIMITS = PictureLimits(max_px=1 << 20, max_bytes=MAX_BYTES)
PREPROCESS = Preprocess(resize_px=40, crop_px=32, mean=(0, 0, 0), std=(1, 1, 1), exif="apply")
SCALED = msgspec.structs.replace(PREPROCESS, scaled_decode=True)
FILES = {"golden.png": b"a picture", "model.onnx": b"a graph"}
MEMBERS = members_of(FILES)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="edgecls-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def _record() -> Manifest:
    path = write_bundle(_folder() / "record.edgecls", FILES["model.onnx"], 8)
    return Bundle(path).manifest


def manifest(data: bytes) -> None:
    """`bundle.json` in a well-formed archive."""
    bundle(_archive({"bundle.json": data, **FILES}))


def plan(data: bytes) -> None:
    """`plan.json` in a well-formed bundle."""
    files = {**FILES, "plan.json": data}
    record = msgspec.json.encode(msgspec.structs.replace(_record(), members=members_of(files)))
    bundle(_archive({"bundle.json": record, **files}))


def _archive(files: dict[str, bytes]) -> bytes:
    archive_bytes = io.BytesIO()
    with zipfile.ZipFile(archive_bytes, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return archive_bytes.getvalue()


def bundle(data: bytes) -> None:
    """The whole archive: what opens is read and told, as `edgecls inspect` tells it."""
    path = _folder() / "net.edgecls"
    path.write_bytes(data)
    opened = Bundle(path)
    for member in opened.manifest.members:
        opened.read(member)
    assert len(opened.sha256) == 64
    assert sum(map(len, opened.unsigned())) <= opened.size_bytes
    opened.manifest.labels.index_from_folder(opened.manifest.labels.names[0])
    assert not any("\n" in line for line in inspect._lines(opened))
    if "plan.json" in opened.manifest.members:
        assert not any("\n" in line for line in inspect._bars(inspect._sensitivity(opened)))


def labels(data: bytes) -> None:
    """A labels file: what is read is printable and finds its folders."""
    path = _folder() / "labels.txt"
    path.write_bytes(data)
    read = Labels.from_file(path)
    assert all(len(name) <= 1000 and "\x1b" not in name for name in read.names)
    read.indices_from_folders(read.ids or ())


def picture(data: bytes) -> None:
    """An encoded picture: with the compiled helpers and without, the pixels or the refusal are the same."""
    answers = [_answer(data)]
    if kernel() is not None or jpeg_decoder() is not None:
        os.environ["EDGECLS_FAST"] = "0"
        try:
            answers.append(_answer(data))
        finally:
            del os.environ["EDGECLS_FAST"]
    assert len(set(answers)) == 1, "the compiled helpers and Pillow disagree"
    _answer(data, SCALED)
    if isinstance(answers[0], str):
        raise InputError(answers[0])


def _answer(data: bytes, preprocess: Preprocess = PREPROCESS) -> bytes | str:
    try:
        pixels = preprocess.pixels(data, limits=LIMITS)
    except InputError as error:
        _refuse_exhaustion(error)
        return str(error)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    return pixels.tobytes()


DOORS = {"manifest": manifest, "bundle": bundle, "plan": plan, "labels": labels, "picture": picture}


def knock(door: str, data: bytes) -> bool:
    """Whether a door opened for these bytes; raises what no stranger may cause."""
    began = time.process_time()
    opened = True
    try:
        DOORS[door](data)
    except EdgeclsError as error:
        _refuse_exhaustion(error)
        opened = False
    spent = time.process_time() - began
    if spent > SECONDS:
        raise TimeoutError(f"{door}: {len(data)} bytes took {spent:.1f} s")
    return opened


def _refuse_exhaustion(error: BaseException | None) -> None:
    """Running out of memory is no refusal, whatever it was turned into on its way."""
    while error is not None:
        if isinstance(error, MemoryError):
            raise error
        error = error.__cause__
