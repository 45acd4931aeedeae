"""An ONNX file as the source of a classifier: what it must look like, checked before anything is built on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgecls.runtime.engines.onnxruntime import import_onnxruntime, session_options
from edgecls.runtime.errors import InputError

_REMEDY = "Export it again as one float32 input [batch, 3, height, width] and one output [batch, classes]."


def check_onnx(path: Path, crop_px: int) -> tuple[int, tuple[str, ...]]:
    """Checks an ONNX classifier and runs it once on a black picture of side `crop_px`.

    Returns:
        The number of classes, and what the user should know.

    Raises:
        InputError: The file cannot be read, needs data outside its folder, has another input or output than a
            classifier of two classes or more, or fails.
    """
    graph = _read(path).graph
    given = [value for value in graph.input if value.name not in {weight.name for weight in graph.initializer}]
    if len(given) != 1:
        names = ", ".join(value.name for value in given) or "none"
        raise InputError(f"{path} has {len(given)} inputs ({names}): a classifier has one. {_REMEDY}")
    batch = _check_input(path, given[0], crop_px)
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output) or "none"
        raise InputError(f"{path} has {len(graph.output)} outputs ({names}): a classifier has one. {_REMEDY}")
    logits = _run(path, given[0].name, batch, crop_px)
    if logits.ndim != 2 or logits.shape[0] != batch or logits.dtype != np.float32:
        raise InputError(
            f"{path}: output {graph.output[0].name} is {logits.dtype} {list(logits.shape)} for a batch of {batch}; "
            f"it must be float32 [batch, classes]. {_REMEDY}"
        )
    if logits.shape[1] == 1:
        raise InputError(
            f"{path} has one output, of which softmax always makes 100 %: export it again with two. Where x is the "
            "logit of yes, before any sigmoid, they are 0 and x, the logits of no and yes."
        )
    last = next((node.op_type for node in graph.node if graph.output[0].name in node.output), "")
    notes: tuple[str, ...] = ()
    if last == "Softmax":
        notes = (f"{path.name} ends with Softmax, which the bundle's session applies: its graph ends before",)
    return logits.shape[1], notes


def metadata_of(path: Path) -> dict[str, str]:
    """The entries of a file's `metadata_props`.

    Raises:
        InputError: The file cannot be read.
    """
    return {entry.key: entry.value for entry in _read(path).metadata_props}


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.is_dir():
        raise InputError(f"{path} is a folder: pass the .onnx file in it.")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except DecodeError as error:
        raise InputError(f"{path} is no ONNX file, or is cut off ({error}): export or copy it again.") from error
    if not model.graph.node:
        raise InputError(f"{path} is no ONNX file, or holds an empty graph: export or copy it again.")
    for location in sorted(set(_external_files(model.graph))):
        _check_external(path, location)
    return model


def digest_of(path: Path) -> str:
    """sha256 of a file, hex; of one that keeps weights beside it, over these files too."""
    from edgecls.models.checkpoint import sha256_of

    companions = sorted(set(_external_files(_read(path).graph)))
    if not companions:
        return sha256_of(path)
    parts = [sha256_of(path), *(f"{name} {sha256_of(path.resolve().parent / name)}" for name in companions)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _external_files(graph: Any) -> Iterator[str]:
    """Files that weights are stored in, of the graph and those inside its nodes."""
    tensors = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                yield from _external_files(inner)
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield entry.value


def _check_external(path: Path, location: str) -> None:
    """A companion must lie in the model's own folder, whatever links say."""
    folder = path.resolve().parent
    companion = (folder / location).resolve()
    if Path(location).is_absolute() or not companion.is_relative_to(folder):
        raise InputError(
            f"{path} keeps weights in {location}, outside its own folder: it could read any file. "
            "Export it again with its data beside it, or inside it."
        )
    if not companion.is_file():
        raise InputError(f"{path} keeps weights in {location}, which is not beside it: copy both files together.")


def _check_input(path: Path, value: Any, crop_px: int) -> int:
    """Checks type and shape of the input; the batch size to run it with."""
    import onnx

    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shown = f"{kind} [{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise InputError(f"{path}: input {value.name} is {shown}; it must be float32. {_REMEDY}")
    if len(dims) != 4:
        raise InputError(f"{path}: input {value.name} is {shown}; it must have 4 axes. {_REMEDY}")
    batch, channels, height_px, width_px = dims
    if channels not in {3, None}:
        hint = " (it seems to be [batch, height, width, 3])" if width_px == 3 else ""
        raise InputError(f"{path}: input {value.name} is {shown}{hint}; axis 1 must be 3 channels. {_REMEDY}")
    if height_px not in {crop_px, None} or width_px not in {crop_px, None}:
        raise InputError(f"{path}: input {value.name} is {shown}, but --crop is {crop_px}: they must agree.")
    return batch or 1


def _run(path: Path, name: str, batch: int, crop_px: int) -> np.ndarray[Any, Any]:
    onnxruntime = import_onnxruntime()
    try:
        session = onnxruntime.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])
        answers = session.run(None, {name: np.zeros((batch, 3, crop_px, crop_px), np.float32)})
    except Exception as error:  # ONNX Runtime has a class for each status, all of them bare Exceptions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} does not run on a {crop_px}x{crop_px} px picture: {reason}. Export it again."
        ) from error
    return np.asarray(answers[0])
