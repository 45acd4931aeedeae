"""Writes bundles, one file that is the same for the same inputs, and signs them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.bundle import Bundle, Manifest, Member
from edgecls.runtime.signature import comment_from_signature, sign

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can name: bundles do not say when they were made."""


def members_of(files: Mapping[str, bytes]) -> dict[str, Member]:
    """What the manifest says of each file."""
    return {name: Member(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Writes a bundle, all of it or nothing.

    Member order and timestamps are fixed, so that equal inputs give equal files.

    Args:
        path: An existing file is replaced.
        manifest: What becomes `bundle.json`.
        files: Every member but `bundle.json`; those that `manifest.members` lists.

    Raises:
        InputError: The folder does not exist, is not writable, or the disk is full.
    """
    record = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"bundle.json": record, **files}.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)


def sign_bundle(path: Path, key: str | os.PathLike[str]) -> None:
    """Signs a bundle in its place, all of it or nothing; an earlier signature goes.

    Every member is checked first. The bundle's `sha256` stays what it was.

    Args:
        path: The `.edgecls` file.
        key: PEM file of an Ed25519 private key.

    Raises:
        BundleError: The bundle is damaged.
        InputError: There is no such bundle or key, or the folder cannot be written.
        MissingExtraError: cryptography is not installed.
    """
    bundle = Bundle(path)
    for member in bundle.manifest.members:
        bundle.read(member)
    comment = comment_from_signature(sign(bundle.record, key))
    with atomic_file(path) as file:
        for block in bundle.unsigned():
            file.write(block)
        file.seek(-2, os.SEEK_CUR)
        file.write(len(comment).to_bytes(2, "little") + comment)
