"""Another Python than this one, of another version or for another CPU: Debian's, with what a device installs.

It lies in the cache folder of debian.py; nothing is installed. `python tests/debian_python.py arm64` makes one ahead of
time.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cached_wheels import cached_wheels
from debian import unpacked
from qemu import emulator

REPOSITORY = Path(__file__).parents[1]

VERSION = "3.13"
"""Of the Debian release that debian.py names: also Raspberry Pi OS's since 2025."""

DEBIAN_PACKAGES = (
    *(f"python{VERSION}-minimal", f"libpython{VERSION}-minimal", f"libpython{VERSION}-stdlib"),
    *("libc6", "libstdc++6", "libgcc-s1", "libgomp1", "zlib1g", "libexpat1", "libssl3t64", "libzstd1"),
    *("libffi8", "libbz2-1.0", "liblzma5", "libuuid1"),
)
WHEELS = (
    *("numpy", "pillow", "msgspec", "click", "rich", "onnxruntime", "simplejpeg"),
    *("pytest", "pytest-timeout", "hypothesis", "psutil"),
)
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

LEFT_OUT = {
    "test_frame.py": "hands over arrays of torch, which no device has",
    "test_hostile_graphs.py": "writes its graphs with onnx, which no device has",
    "test_session_lifetime.py": "exports its own bundles, for which it needs torch",
}
"""Of tests/runtime, and why they cannot run where only the runtime is installed."""

_AT_LEAST = 500
"""Tests that must pass: of 649 when this was written. A run that skips nearly all of them proves nothing."""


def debian_python(architecture: str) -> Path:
    """A program that is called as Python is: a script that starts Debian's, in QEMU where that is for another CPU.

    It calls itself by the script's name (`sys.executable`), so processes that it starts in its turn run as it does.
    The environment variable `QEMU_CPU` says which CPU QEMU is.

    Args:
        architecture: Debian's name of it: `amd64`, `arm64`.

    Raises:
        UnavailableError: Debian's or PyPI's packages are not to be had here; the message says why.
    """
    root = unpacked(f"python-{architecture}", DEBIAN_PACKAGES, architecture=architecture)
    site = cached_wheels(f"site-{architecture}", WHEELS, *_wheels_for(MACHINES[architecture]))
    _link(root / "usr/lib/python3/dist-packages", site)
    for name in ("lib", "lib64"):  # Debian's packages no longer have them: its installer makes links
        if (root / "usr" / name).is_dir():
            _link(root / name, root / "usr" / name)
    script = root / "usr/bin/python"
    fresh = script.with_name(f"python.{os.getpid()}")  # always written: the cache may have been moved
    fresh.write_text(f'#!/bin/sh\nexec {_command(root, script, architecture)} "$@"\n')
    fresh.chmod(0o755)
    fresh.rename(script)
    return script


def _link(link: Path, folder: Path) -> None:
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder, link.parent))


def _wheels_for(machine: str) -> list[str]:
    """Options of pip."""
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 17)), f"manylinux2014_{machine}"]
    abis = (f"cp{VERSION.replace('.', '')}", "abi3", "none")
    options = [f"--platform={platform}" for platform in platforms] + [f"--abi={abi}" for abi in abis]
    return [*options, f"--python-version={VERSION}", "--implementation=cp"]


def _command(root: Path, script: Path, architecture: str) -> str:
    """How a shell starts Python with the libraries of `root`, for it may be newer than this machine's."""
    program = root / f"usr/bin/python{VERSION}"
    if architecture == "amd64":
        libraries = root / "usr/lib/x86_64-linux-gnu"
        loader = [root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, "--argv0", script]
    else:
        loader = [emulator(MACHINES[architecture]), "-L", root, "-0", script]
    return shlex.join(str(part) for part in (*loader, program))


def site_of(folder: Path, wheels: Sequence[Path]) -> Path:
    """Unpacks wheels, which have nothing to install but themselves, into a folder for `PYTHONPATH`; returns it."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def fast_wheel(folder: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Builds edgecls-fast into a folder, by a compiler that variables may name; returns the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(REPOSITORY / "fast")],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("edgecls_fast-*.whl")
    return wheel


def run(
    python: Path, site: Path, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs that Python with the packages of `site`, in a folder outside the repository."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    return subprocess.run(
        [str(python), *arguments], cwd=folder, env={**inherited, "PYTHONPATH": str(site), **(environment or {})},
        capture_output=True, text=True, timeout=7200,
    )  # fmt: skip


def run_runtime_tests(
    python: Path,
    site: Path,
    bundle: Path,
    *,
    folder: Path,
    left_out: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs tests/runtime there and returns pytest's summary; fails where one of them does.

    Args:
        python: From `debian_python`.
        site: With edgecls's wheel.
        bundle: What the tests of sessions open, for a device cannot export one.
        folder: Empty.
        left_out: More than `LEFT_OUT`: files, or tests as `test_file.py::test_name`, and why.
        environment: Variables.
    """
    tests = REPOSITORY / "tests" / "runtime"
    names = [*LEFT_OUT, *(left_out or {})]
    options = [f"--ignore={tests / name}" for name in names if "::" not in name]
    options += [f"--deselect=tests/runtime/{name}" for name in names if "::" in name]
    options += ["-q", "-p", "no:cacheprovider", f"--rootdir={REPOSITORY}", f"--config-file={REPOSITORY}/pyproject.toml"]
    options += ["-m", "not slow", "-o", "timeout=3600", f"--basetemp={folder / 'temporary'}"]
    given = {"EDGECLS_TEST_BUNDLE": str(bundle), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
    done = run(python, site, "-m", "pytest", *options, str(tests), folder=folder, environment=given)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    passed = re.findall(r"(\d+) passed", done.stdout)
    assert sum(map(int, passed)) > _AT_LEAST, f"hardly anything ran: {done.stdout[-2000:]}"
    return done.stdout


if __name__ == "__main__":
    print(debian_python(sys.argv[1]))
