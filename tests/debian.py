"""What tests need of Debian, unpacked into a cache folder: nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "debian"
"""Kept between runs, ignored by git, removed by `make clean`."""

SUITE = "trixie"
"""Its QEMU is 10.0; 7.2, that of the suite before, crashes in ONNX Runtime on aarch64."""

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class UnavailableError(Exception):
    """Debian's packages are not to be had here; the message says why."""


def unpacked(
    name: str,
    packages: Sequence[str],
    *,
    architecture: str = "amd64",
    members: Sequence[str] = (),
    suite: str = SUITE,
    dependencies: bool = False,
) -> Path:
    """A folder of the cache with the files of Debian packages; fetched once.

    Args:
        name: Of the folder.
        architecture: Debian's name of it: `amd64`, `arm64`.
        members: The only files that are wanted, as `./usr/bin/…`; empty for all.
        suite: Debian's release.
        dependencies: Whether to unpack what the packages depend on too, down to the C library.

    Raises:
        UnavailableError: apt, its keyring or the network is missing.
    """
    folder = CACHE / name
    if folder.is_dir():
        return folder
    if missing := [tool for tool in ("apt-get", "dpkg-deb", "tar") if shutil.which(tool) is None]:
        raise UnavailableError(f"{', '.join(missing)} not found: only Debian and its children have Debian's packages")
    if not KEYRING.exists():
        raise UnavailableError(f"{KEYRING} is not here: sudo apt install debian-archive-keyring")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        for package in _downloaded(Path(scratch), packages, architecture, suite, dependencies):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
                subprocess.run(["tar", "-x", "-C", str(root), *members], stdin=archive.stdout, check=True)
        root.rename(folder)
    return folder


def _downloaded(
    scratch: Path, packages: Sequence[str], architecture: str, suite: str, dependencies: bool
) -> list[Path]:
    """The package files, by an apt whose lists and cache are a folder of ours."""
    archives = scratch / "cache/archives"
    for folder in (scratch / "lists/partial", archives / "partial"):
        folder.mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": scratch,
        "Dir::State::Status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 2,
        "pkgCacheGen::Essential": "none",  # an empty status would call for a whole system
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
    environment = {**os.environ, "LC_ALL": "C"}
    download = ["install", "--yes", "--no-install-recommends", "--download-only"] if dependencies else ["download"]
    for arguments in (["update"], [*download, *packages]):
        done = subprocess.run(
            [*apt, *arguments], cwd=archives, env=environment, capture_output=True, text=True, timeout=900
        )
        if done.returncode != 0:
            raise UnavailableError(f"apt-get {' '.join(arguments)} for Debian {suite} failed: {done.stderr.strip()}")
    return sorted(archives.glob("*.deb"))
