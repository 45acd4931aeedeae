"""One file that holds a classifier: its record, and the reader that trusts nothing in it.

A bundle is a zip archive of stored (not compressed) members that is read in place. `bundle.json` describes every other
member; the reader checks each against it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, Literal

import msgspec

from edgecls.runtime.cpu import Isa
from edgecls.runtime.engine_passport import EnginePassport
from edgecls.runtime.errors import BundleError, InputError
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.signature import COMMENT_BYTES, is_signed, signature_from_comment

SCHEMA = "edgecls.bundle/1"

MAX_MEMBERS = 64
"""Members that a bundle may have."""

MAX_MANIFEST_BYTES = 16 << 20
"""Size that `bundle.json` may have."""

MAX_DIRECTORY_BYTES = 64 << 10
"""Size that the archive's directory may have: zipfile reads all of it before anybody can count its members."""

MAX_PADDING_PX = 64
"""On each side of the crop: more than the first convolution of any network has, and little memory."""

MAX_GOLDEN_SAMPLES = 16
"""An export makes two."""

_END = struct.Struct("<4s4H2LH")
"""The archive's end record: magic, 2 disks, 2 counts of members, size and place of the directory, length of the
comment."""
_LOCATOR = struct.Struct("<4sLQL")
"""What stands before it in an archive of 64 bits: magic, disk and place of another end record, disks."""
_END_64 = struct.Struct("<4sQ2H2L4Q")
"""That record, before its locator: magic, own size, 2 versions, 2 disks, 2 counts of members, size and place of the
directory."""

_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error)
"""What zipfile makes of damage."""

_MEMBER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")

Precision = Literal["fp32", "fp16", "int8"]


class Member(msgspec.Struct, frozen=True):
    """What `bundle.json` says of another member of the archive."""

    sha256: str
    """Of the member's bytes, hex."""
    size_bytes: int


class Padding(msgspec.Struct, frozen=True, kw_only=True):
    """The border that the session puts around the crop before the engine sees it, and how wide its pixels are.

    The first convolution of a graph with a border has no padding of its own: zero padding after normalisation means
    the channel means, and only the caller can write three different bytes.
    """

    top_px: int
    """0 to `MAX_PADDING_PX`, as the other sides."""
    left_px: int
    bottom_px: int
    right_px: int
    value: tuple[int, int, int]
    """RGB, 0..255: the rounded means."""
    pixel_bytes: Literal[3, 4] = 3
    """4 where the engine is faster on `uint8 [batch, height, width, 4]`; the fourth byte makes no difference."""


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


class TensorRtPassport(msgspec.Struct, frozen=True, kw_only=True):
    """What TensorRT must know of a graph or an engine before it touches it."""

    dialect: Literal["weak", "strong"]
    """`strong`: every tensor's type stands in the graph, the network is built strongly typed. `weak`: the graph is
    float32 and the builder's flags choose (TensorRT 8.6)."""
    minimum_version: str
    """Oldest TensorRT that takes the graph: `8.6`, `10.3`; for TensorRT-RTX its own version."""
    build: Literal["on-device", "ahead-of-time"]
    """Whether the artifact is a graph (`model.onnx`) that the device builds, or built engines."""
    flags: tuple[str, ...] = ()
    """Names of the builder's flags that a weakly typed build sets: `FP16`, `INT8`."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that a built engine fits: `8.6`, `12.0`; empty for a graph that the device builds."""
    engine: EnginePassport | None = None
    """What the engine fits that a device has built into this bundle; None until then."""


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
    tensorrt: TensorRtPassport | None = None
    """None for every other engine."""


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

    @property
    def unbuilt(self) -> bool:
        """Whether the artifact is a graph that the device has to build into an engine first."""
        tensorrt = self.passport.tensorrt
        return tensorrt is not None and tensorrt.build == "on-device" and tensorrt.engine is None

    def problem(self) -> str | None:
        """What in this record contradicts itself, or None."""
        classes = len(self.labels)
        if missing := {*self.artifact, *(sample.image for sample in self.golden)} - set(self.members):
            return f"it needs the member {sorted(missing)[0]!r} but does not list it"
        if len(set(self.artifact)) < len(self.artifact):
            return "its artifact names a member twice"
        if not self.artifact or not self.golden:
            return "it has no artifact or no golden samples"
        if len(self.golden) > MAX_GOLDEN_SAMPLES:
            return f"it has {len(self.golden)} golden samples, more than {MAX_GOLDEN_SAMPLES}"
        if any(len(sample.logits) != classes for sample in self.golden):
            return f"a golden sample has another number of logits than there are labels ({classes})"
        if not 0 < self.golden_tolerance < float("inf"):
            return f"the golden tolerance is {self.golden_tolerance}"
        if self.padding is not None:
            border = self.padding
            sides = (border.top_px, border.left_px, border.bottom_px, border.right_px)
            if not all(0 <= side <= MAX_PADDING_PX for side in sides):
                return f"the padding {sides} is negative or wider than {MAX_PADDING_PX} px"
            if not all(0 <= byte <= 255 for byte in border.value):
                return f"the padding's value {border.value} is not three bytes"
        return None


class ReplacedError(BundleError):
    """Another file has taken the bundle's name since it was opened: open it again."""


class Bundle:
    """An open bundle: its record, and its members' bytes, read in place and checked.

    Attributes:
        path: The file.
        record: The bytes of `bundle.json`.
        manifest: The same, checked.
        size_bytes: Size of the whole file.
        signature: 64 bytes, unproven unless the bundle was opened with a key; None where it was not signed.
    """

    def __init__(self, path: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> None:
        """Opens a bundle and checks its directory and record; members are checked when they are read.

        Args:
            path: The `.edgecls` file.
            key: PEM file of an Ed25519 public key: only a bundle that was signed with the private one is opened. The
                signature is checked before the record is looked at.

        Raises:
            InputError: There is no such file, or it cannot be read; or the key is none.
            BundleError: The file is no bundle, is damaged, tampered with, or newer than this edgecls; or the key has
                not signed it.
            MissingExtraError: There is a key, and cryptography is not installed.
        """
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                self._status = os.fstat(file.fileno())
                self.size_bytes = self._status.st_size
                self.signature = self._checked_end(file)
                with zipfile.ZipFile(file) as archive:
                    self._directory = self._checked_directory(archive)
                    self.record = self._read(archive, "bundle.json")
        except OSError as error:
            raise InputError(f"cannot read the bundle {self.path}: {error.strerror or error}") from error
        except _ZIP_ERRORS as error:
            raise self._error(f"it is not a whole zip archive ({error or type(error).__name__})") from error
        if key is not None:
            self._check_signature(key)
        self.manifest = self._checked_manifest(self.record)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the whole file as it was before it was signed, hex: the identity of the bundle in reports."""
        digest = hashlib.sha256()
        for block in self.unsigned():
            digest.update(block)
        return digest.hexdigest()

    def unsigned(self) -> Iterator[bytes]:
        """The bytes of the whole file as they were before it was signed, in blocks.

        Raises:
            ReplacedError: Another file has taken the bundle's name since it was opened.
        """
        left = self.size_bytes - (COMMENT_BYTES if self.signature else 0) - 2
        with self._reopened() as file:
            while block := file.read(min(left, 1 << 20)):
                left -= len(block)
                yield block
        yield b"\0\0"  # the length of the comment

    def read(self, member: str) -> bytes:
        """The bytes of a member, checked against its size and digest.

        Raises:
            BundleError: The member is missing, or its bytes are not those that `bundle.json` names.
            ReplacedError: Another file has taken the bundle's name since it was opened.
        """
        if member not in self.manifest.members:
            raise self._error(f"it has no member {member!r}")
        try:
            with self._reopened() as file, zipfile.ZipFile(file) as archive:
                data = self._read(archive, member)
        except OSError as error:
            raise InputError(f"cannot read the bundle {self.path}: {error.strerror or error}") from error
        except _ZIP_ERRORS as error:
            raise self._error(f"its member {member!r} is damaged ({error})") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.members[member].sha256:
            raise self._error(f"its member {member!r} has other bytes than bundle.json says: it was damaged or changed")
        return data

    def _reopened(self) -> IO[bytes]:
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise InputError(f"cannot read the bundle {self.path}: {error.strerror or error}") from error
        status, then = os.fstat(file.fileno()), self._status
        if (status.st_ino, status.st_mtime_ns, status.st_size) != (then.st_ino, then.st_mtime_ns, then.st_size):
            file.close()
            raise ReplacedError(f"{self.path} was replaced since it was opened: open it again")
        return file

    def _read(self, archive: zipfile.ZipFile, member: str) -> bytes:
        size = self._directory[member]
        with archive.open(member) as file:
            data = file.read(size + 1)
        if len(data) != size:
            raise self._error(f"its member {member!r} holds {len(data)} bytes where its directory says {size}")
        return data

    def _checked_end(self, file: IO[bytes]) -> bytes | None:
        """The signature, from an archive whose end is the end of the file and whose directory is short."""
        file.seek(max(self.size_bytes - _END_64.size - _LOCATOR.size - _END.size - COMMENT_BYTES, 0))
        tail = file.read()
        begin = tail.rfind(b"PK\5\6")
        end, comment = tail[begin:][: _END.size], tail[begin:][_END.size :]
        if begin < 0 or len(end) < _END.size or (fields := _END.unpack(end))[-1] != len(comment):
            raise self._error("it is not a whole zip archive (its end is missing)")
        # Archives of many GB have a second record with these numbers, which zipfile believes.
        directory_bytes, locator = fields[5], tail[max(begin - _LOCATOR.size, 0) : begin]
        if locator.startswith(b"PK\6\7"):
            place = self.size_bytes - len(tail) + begin - _LOCATOR.size - _END_64.size
            record = tail[max(begin - _LOCATOR.size - _END_64.size, 0) : begin - _LOCATOR.size]
            if _LOCATOR.unpack(locator)[2] != place or not record.startswith(b"PK\6\6"):
                raise self._error("it is not a whole zip archive (its end of 64 bits is missing)")
            directory_bytes = _END_64.unpack(record)[8]
        if directory_bytes > MAX_DIRECTORY_BYTES:
            raise self._error(f"its directory has {directory_bytes} bytes; at most {MAX_DIRECTORY_BYTES} are read")
        try:
            return signature_from_comment(comment) if comment else None
        except ValueError:
            raise self._error(f"its comment {comment[:20]!r}... is no signature") from None

    def _check_signature(self, key: str | os.PathLike[str]) -> None:
        if self.signature is None:
            raise self._error(f"it is not signed, and only what {os.fspath(key)} has signed is accepted")
        if not is_signed(self.record, self.signature, key):
            raise self._error(f"its signature is not by {os.fspath(key)}, or it was changed since it was signed")

    def _checked_directory(self, archive: zipfile.ZipFile) -> dict[str, int]:
        """The archive's directory: plain stored files, each name once, none larger than the file itself."""
        directory: dict[str, int] = {}
        for entry in archive.infolist():
            if entry.filename in directory:
                raise self._error(f"it holds {entry.filename!r} twice")
            if not _MEMBER_NAME.fullmatch(entry.filename):
                raise self._error(f"it holds a member of the forbidden name {entry.filename!r}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise self._error(f"its member {entry.filename!r} is compressed or encrypted")
            if entry.file_size > self.size_bytes:
                raise self._error(
                    f"its member {entry.filename!r} claims {entry.file_size} bytes, more than the file has"
                )
            directory[entry.filename] = entry.file_size
            if len(directory) > MAX_MEMBERS:
                raise self._error(f"it holds more than {MAX_MEMBERS} members")
        if "bundle.json" not in directory:
            raise self._error("it has no bundle.json: it is not an edgecls bundle")
        if directory["bundle.json"] > MAX_MANIFEST_BYTES:
            raise self._error(
                f"its bundle.json has {directory['bundle.json']} bytes; at most {MAX_MANIFEST_BYTES} are read"
            )
        return directory

    def _checked_manifest(self, data: bytes) -> Manifest:
        try:
            schema = msgspec.json.decode(data, type=_SchemaOnly).schema
            if schema != SCHEMA:
                raise self._error(f"it has the schema {schema!r}; this edgecls reads {SCHEMA!r}. Upgrade edgecls here")
            manifest = msgspec.json.decode(data, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
            raise self._error(f"its bundle.json is not valid: {error}") from error
        problem = manifest.problem()
        listed = set(manifest.members)
        if problem is None and (extra := set(self._directory) - listed - {"bundle.json"}):
            problem = f"the archive holds {sorted(extra)[0]!r}, which bundle.json does not list"
        if problem is None and (lacking := listed - set(self._directory)):
            problem = f"the archive lacks {sorted(lacking)[0]!r}"
        for name in listed if problem is None else ():
            if manifest.members[name].size_bytes != self._directory[name]:
                problem = f"{name!r} has {self._directory[name]} bytes where bundle.json says otherwise"
        if problem is not None:
            raise self._error(f"its bundle.json does not fit: {problem}")
        return manifest

    def _error(self, what: str) -> BundleError:
        return BundleError(f"{self.path} is refused: {what}. Get it again from where it was made, or export it anew.")


class _SchemaOnly(msgspec.Struct):
    schema: str
