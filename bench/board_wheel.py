"""The wheel that a board gets: what it needs of the edgecls that runs here, installed from wherever."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

PACKAGES = ("edgecls", "edgecls.commands", "edgecls.bench", "edgecls.runtime", "edgecls.runtime.engines")
"""The front door and the two floors that run on a board."""

_WRITTEN = (1980, 1, 1, 0, 0, 0)


def board_wheel() -> tuple[str, bytes]:
    """The file name and the bytes of a pure wheel, the same for the same edgecls.

    It is put together from the imported packages, for what pip builds from a source tree differs each time by its
    timestamps, and needs that tree and setuptools: a board would get it, and install it, with every measurement.
    """
    distribution = metadata.distribution("edgecls")
    files = {
        f"{package.replace('.', '/')}/{path.name}": path.read_bytes()
        for package in PACKAGES
        for path in sorted(Path(importlib.import_module(package).__path__[0]).iterdir())
        if path.is_file() and not path.name.startswith(".")
    }
    info = f"edgecls-{distribution.version}.dist-info"
    # A source tree has an .egg-info, whose file has another name.
    described = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    assert described is not None
    files[f"{info}/METADATA"] = described.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgecls\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_urlsafe(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name, _WRITTEN), data, zipfile.ZIP_DEFLATED)
    return f"edgecls-{distribution.version}-py3-none-any.whl", archive.getvalue()


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
