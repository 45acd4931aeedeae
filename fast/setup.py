"""Builds the kernel as a plain shared library inside the package.

It is loaded with ctypes and knows nothing of Python: one wheel per platform (`py3-none-...`) serves every Python from
3.10 on, and a C compiler for a board cross-builds it without that board's Python headers. An abi3 extension would need
them, and would have to release the GIL by itself, as ctypes does around every call. To cross-build:

    export CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" _PYTHON_HOST_PLATFORM=linux-aarch64
    pip wheel ./fast
"""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """Names the library without the tag of one Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The path in the wheel."""
        return fullname.replace(".", "/") + ".so"


class AnyPythonWheel(bdist_wheel):
    """A wheel for this platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "edgecls_fast.resample",
            ["edgecls_fast/resample.c"],
            # Python's own flags come first and may say -O2 -g. For -ffp-contract see resample.c.
            extra_compile_args=["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"],
            libraries=["m"],
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
