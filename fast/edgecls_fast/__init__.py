"""The compiled resize of edgecls, a plain shared library behind ctypes. edgecls finds it by itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

__version__ = "0.1.0"

ABI_VERSION = 1
"""Counts the changes of `edgecls_resample`: edgecls refuses the kernel when it expects another."""

LIBRARY = Path(__file__).with_name("resample.so")


def load() -> ctypes.CDLL:
    """Opens the library.

    Returns:
        `edgecls_resample` with its argument types (see resample.c); it releases the GIL and may be called from any
        thread. It returns 0, 1 where memory ran out, 2 for arguments that contradict each other.

    Raises:
        OSError: The library is missing or was built for another machine: install edgecls-fast again.
    """
    library = ctypes.CDLL(str(LIBRARY))
    window = ctypes.c_int64 * 4
    library.edgecls_abi_version.argtypes = []
    library.edgecls_abi_version.restype = ctypes.c_int
    if library.edgecls_abi_version() != ABI_VERSION:
        raise OSError(f"{LIBRARY} has ABI {library.edgecls_abi_version()}, the package beside it {ABI_VERSION}")
    library.edgecls_resample.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
        *(window, window, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
    ]
    library.edgecls_resample.restype = ctypes.c_int
    return library
