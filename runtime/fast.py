"""The compiled helpers that are used where they are installed: the same pixels in less time.

`edgecls-fast` resizes, simplejpeg decodes JPEG. `EDGECLS_FAST=0` in the environment switches both off.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from PIL import __version__ as pillow_version

from edgecls.runtime.errors import UnsupportedError

ABI_VERSION = 1
"""Of the `edgecls_fast` that this edgecls can call."""

_REMEDY = "install edgecls and edgecls-fast from one release (pip install ./fast), or set EDGECLS_FAST=0"


def kernel() -> ctypes.CDLL | None:
    """The compiled resize; None where `edgecls-fast` is not installed or switched off.

    Raises:
        UnsupportedError: It is installed but cannot be used here; the message says why.
    """
    return None if _switched_off() else _kernel()


def jpeg_decoder() -> Callable[..., Any] | None:
    """`decode_jpeg` of simplejpeg; None where simplejpeg is not installed or switched off.

    Raises:
        UnsupportedError: It is installed but cannot be imported.
    """
    return None if _switched_off() else _jpeg_decoder()


def versions() -> dict[str, str]:
    """Which library resizes and which decodes plain JPEG, with its version."""
    pillow = f"pillow {pillow_version}"
    return {
        "resize": pillow if kernel() is None else f"edgecls-fast {sys.modules['edgecls_fast'].__version__}",
        "jpeg": pillow if jpeg_decoder() is None else f"simplejpeg {sys.modules['simplejpeg'].__version__}",
    }


def _switched_off() -> bool:
    return os.environ.get("EDGECLS_FAST") == "0"


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    if importlib.util.find_spec("edgecls_fast") is None:
        return None
    try:
        package = importlib.import_module("edgecls_fast")
        if package.ABI_VERSION != ABI_VERSION:
            raise UnsupportedError(
                f"edgecls-fast {package.__version__} has ABI {package.ABI_VERSION}, this edgecls needs {ABI_VERSION}: "
                f"{_REMEDY}"
            )
        library: ctypes.CDLL = package.load()
    except (ImportError, AttributeError, OSError) as error:
        raise UnsupportedError(f"edgecls-fast is installed but cannot be used ({error}): {_REMEDY}") from error
    return library


@functools.cache
def _jpeg_decoder() -> Callable[..., Any] | None:
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    try:
        decoder: Callable[..., Any] = importlib.import_module("simplejpeg").decode_jpeg
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"simplejpeg is installed but cannot be used ({error}): pip install 'simplejpeg>=1.7', "
            "or set EDGECLS_FAST=0"
        ) from error
    return decoder
