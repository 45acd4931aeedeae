"""A C compiler for other CPUs, from PyPI, in the cache folder of debian.py.

Zig, which is Clang with the headers and libraries of every Linux: one wheel, the same on any Linux and macOS, and it
links for the oldest glibc that is wanted. GCC for ARM would be 15 packages that fit one release of Debian only.
"""

from __future__ import annotations

from cached_wheels import cached_wheels
from debian import CACHE

PACKAGE = "ziglang==0.17.1"
TARGET = "aarch64-linux-gnu.2.28"
"""glibc 2.28, as in `manylinux_2_28`: older than that of every board on which the engines' own wheels run."""


def cross_environment() -> dict[str, str]:
    """The variables by which setuptools builds for aarch64.

    Raises:
        UnavailableError: PyPI cannot be reached.
    """
    compiler = f"{cached_wheels('zig', [PACKAGE]) / 'ziglang' / 'zig'} cc -target {TARGET}"
    return {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig-cache"),
        "ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig-cache"),
    }
