"""A checkpoint file becomes a plain state dict, whatever its suffix and wrapping."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from edgecls.models.card import ModelCard
from edgecls.runtime.errors import InputError

StateDict: TypeAlias = dict[str, torch.Tensor]

Format: TypeAlias = Literal["torch", "torch-legacy", "safetensors"]

# The averaged weights come first: they are what timm's and torchvision's training scripts evaluate and report.
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema", "params_ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""A protocol-2 pickle of torch's magic number."""
_SAVE_REMEDY = "save the weights alone, torch.save(model.state_dict(), FILE), and pass that file."


@dataclass(frozen=True)
class Checkpoint:
    """The weights that a file holds."""

    path: Path
    sha256: str
    """Of the file's bytes, hex."""
    tensors: StateDict
    """In the file's order, on the CPU, perhaps mapped from the file."""
    metadata: Mapping[str, Any] | None
    """Versions of the modules as `state_dict()` records them; None where the file has none."""
    notes: tuple[str, ...] = ()
    """Choices made while reading that the user should know."""

    def renamed(self, names: Collection[str]) -> Checkpoint:
        """Strips wrappers' prefixes that all tensors share, as long as no tensor goes by one of the model's names.

        A prefix that the model itself uses (a factory that wraps a backbone as `self.model`) stays.
        """
        tensors, metadata = dict(self.tensors), self.metadata
        while not any(name in names for name in tensors):
            # torch.optim.swa_utils.AveragedModel keeps its counter beside the module that it averages.
            inner = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
            prefix = next((p for p in _PREFIXES if inner and all(name.startswith(p) for name in inner)), None)
            if prefix is None:
                break
            tensors = {name[len(prefix) :]: tensor for name, tensor in inner.items()}
            if metadata is not None:
                module = prefix.removesuffix(".")
                metadata = {
                    name[len(module) :].removeprefix("."): value
                    for name, value in metadata.items()
                    if name == module or name.startswith(prefix)
                }
        return replace(self, tensors=tensors, metadata=metadata)

    def without(self, ignored: Callable[[str], bool]) -> Checkpoint:
        """Leaves out the tensors whose names satisfy `ignored`."""
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if not ignored(name)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of torch (zip or legacy) or safetensors, recognised by its content.

    Nothing in the file is executed: pickles are read with `weights_only=True`.

    Raises:
        InputError: The file is no such checkpoint, is damaged, holds more than weights, or holds weights that are not
            finite numbers; the message says which and what to do.
    """
    kind = recognise(path)
    content = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, zipped=kind == "torch")
    weights, notes = _unwrap(path, content)
    tensors = _checked_tensors(path, weights)
    return Checkpoint(path, sha256_of(path), tensors, getattr(weights, "_metadata", None), notes)


def card_of(path: Path) -> ModelCard | None:
    """What a file says about its own weights; None where it is not a safetensors file that edgecls wrote.

    Raises:
        InputError: It cannot be read; or its card is damaged or newer than this edgecls.
    """
    if recognise(path) != "safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise _cut_off(path, error) from error
    return ModelCard.from_metadata(path, metadata or {})


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def recognise(path: Path) -> Format:
    """Tells what a file is by its first bytes and, for an archive, its directory.

    Raises:
        InputError: It is not a checkpoint that can be read, with what it seems to be instead.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: pass the checkpoint file in it.")
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}.") from error
    if head.startswith(b"PK\x03\x04"):
        return _recognise_archive(path)
    if head.startswith(_TORCH_LEGACY):
        return "torch-legacy"
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    raise InputError(f"{path} is no checkpoint: {_what_instead(head, size_bytes)}")


def _what_instead(head: bytes, size_bytes: int) -> str:
    """What a file that is no checkpoint seems to be, and the remedy."""
    text = head.lstrip().lower()
    if size_bytes == 0:
        return "it is empty. Copy or download it again."
    if not head.strip(b"\0"):
        return "it holds only zeros. Copy or download it again."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, so a download went wrong. Download the file itself."
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer. Fetch the file that it stands for: git lfs pull."
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "it is a tar or gzip archive. Unpack it and pass the checkpoint in it."
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file (Keras?). Only torch and safetensors checkpoints are read."
    if head.startswith(b"\x80"):
        return f"it is a pickle that torch.save did not write. Load it where it was made and {_SAVE_REMEDY}"
    return (
        f"its first bytes, {head[:8]!r}, are those of neither torch.save nor safetensors. Pass the checkpoint itself."
    )


def _recognise_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path} is cut off or damaged ({error}): copy or download it again.") from error
    members = {name.partition("/")[2] for name in names}
    if "constants.pkl" in members or any(member.startswith("code/") for member in members):
        raise InputError(
            f"{path} is a TorchScript archive, which is a program. Where the model's code is, {_SAVE_REMEDY}"
        )
    if "data.pkl" in members:
        return "torch"
    shown = ", ".join(names[:3]) or "nothing"
    raise InputError(f"{path} is a zip archive that torch.save did not write (it holds {shown}). Pass a checkpoint.")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _cut_off(path, error) from error


def _cut_off(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} begins like a safetensors file but is cut off or damaged ({error}): copy or download it again."
    )


def _read_torch(path: Path, *, zipped: bool) -> object:
    """`torch.load` that runs nothing, its failures told apart."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # timm's and torchvision's training scripts store their options beside the weights: a Namespace is plain
            # data. Mapping spares the memory of optimiser states; legacy files cannot be mapped.
            warnings.simplefilter("ignore")
            if zipped and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:  # torch.load believes the suffix .safetensors of a path, not of a stream
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unsafe(path, str(error))) from error
    except Exception as error:  # a damaged pickle raises anything: EOFError, KeyError, UnicodeDecodeError, struct.error
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        raise InputError(f"{path} is cut off or damaged ({reason}): copy or download it again.") from error


def _unsafe(path: Path, reason: str) -> str:
    """Message for a pickle that `weights_only` refuses."""
    reason = reason.rpartition("WeightsUnpickler error: ")[2].strip()
    found = re.search(r"GLOBAL (\S+)", reason)
    needs = found[1] if found else reason.splitlines()[0]
    what = "needs Python code to load"
    if needs.startswith(("torch.nn.", "torchvision.models.", "timm.")):
        what = "seems to hold a whole pickled model instead of its weights, and needs Python code to load"
    return (
        f"{path} {what}: {needs}. edgecls loads weights only, because a pickle can run anything. "
        f"Where you trust it, {_SAVE_REMEDY}"
    )


def _is_tensors(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def _unwrap(path: Path, content: object, depth: int = 0) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Finds the state dict in what training scripts put around it."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict: {_SAVE_REMEDY}")
    if _is_tensors(content):
        return content, ()
    ema = [key for key in _EMA_WRAPPERS if isinstance(content.get(key), Mapping) and content[key]]
    plain = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping) and content[key]]
    sets = (*ema[:1], *plain[:1])
    if sets and depth < 3:
        found: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {}
        for key in sets:
            try:
                found[key] = _unwrap(path, content[key], depth + 1)
            except InputError:
                if key == sets[-1] and not found:
                    raise
        chosen = next(iter(found))
        note: tuple[str, ...] = ()
        if len(sets) == 2:
            averaged, other = sets
            if len(found) == 1:
                refused = averaged if chosen == other else other
                note = (f"{path.name}: took '{chosen}', for '{refused}' is no state dict",)
            elif absent := _absent(found[other][0], found[averaged][0]):
                chosen = other
                note = (f"{path.name}: took '{other}', for the averaged '{averaged}' lacks {absent[0]}",)
            else:
                note = (f"{path.name} holds two sets of weights: took the averaged '{averaged}', not '{other}'",)
        weights, notes = found[chosen]
        return weights, (*note, *notes)
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        odd = next(
            f"{name!r} ({type(value).__name__})" for name, value in content.items() if not _is_weight(name, value)
        )
        raise InputError(f"{path} mixes weights with something else, {odd}: {_SAVE_REMEDY}")
    keys = ", ".join(map(repr, list(content)[:8])) or "nothing"
    raise InputError(f"{path} holds no state dict that edgecls can find, only {keys}: {_SAVE_REMEDY}")


def _absent(plain: Mapping[str, Any], averaged: Mapping[str, Any]) -> list[str]:
    """What averaged weights lack of the plain ones: averages of the parameters alone lack the batch statistics."""
    names = {name.removeprefix("module.") for name in averaged}
    needed = [name for name in plain if not name.endswith("num_batches_tracked")]
    absent = [name for name in needed if name.removeprefix("module.") not in names]
    return absent if len(absent) < len(needed) else []  # else they are named otherwise


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _checked_tensors(path: Path, weights: Mapping[str, Any]) -> StateDict:
    """Refuses weights that no float32 model can take."""
    tensors: StateDict = {}
    for name, tensor in weights.items():
        if tensor.is_quantized or tensor.is_complex() or tensor.layout is not torch.strided or tensor.is_meta:
            raise InputError(
                f"{path}: '{name}' is a {tensor.dtype} {tensor.layout} tensor; pass the float checkpoint, "
                "before any quantization or sparse storage."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise InputError(
                f"{path}: '{name}' holds NaN or infinity, so the training diverged or the file is damaged. "
                "Pass an earlier checkpoint."
            )
        tensors[name] = tensor.detach()
    return tensors
