"""What the whole suite shares: the built wheel, and a device that installed it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that does other work, or a board in QEMU, takes its time: no test is about that.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

REPOSITORY = Path(__file__).parents[1]
PACKAGE_FOLDERS = ("edgecls", "export", "calibration", "models", "bench", "runtime")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built from a copy, for setuptools leaves its traces where it builds."""
    source = tmp_path_factory.mktemp("wheel_source")
    for folder in PACKAGE_FOLDERS:
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / file).exists():
            shutil.copy(REPOSITORY / file, source)
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w"]
    done = subprocess.run([*command, str(built)], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="session")
def device_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel, its base dependencies and ONNX Runtime, and nothing else.

    Run it with `run_on_device`, or outside the repository root, whose folder `edgecls` would shadow the package.
    """
    if not _installed("onnxruntime"):
        pytest.skip("onnxruntime is not installed here")
    home = tmp_path_factory.mktemp("device")
    venv.create(home, with_pip=False, symlinks=os.name == "posix")
    (site,) = home.glob("lib/python*/site-packages")
    for distribution in _with_requirements([*_base_dependencies(wheel), "onnxruntime"]):
        for part in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / part).symlink_to(Path(str(distribution.locate_file(part))).resolve())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return home / "bin" / "python"


@pytest.fixture
def run_on_device(device_python: Path, tmp_path: Path):
    """Runs Python code (or `-m module arguments`) on the device, in an empty folder; returns the finished process."""

    def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(device_python), *(("-c", *arguments) if arguments[0] != "-m" else arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _base_dependencies(wheel: Path) -> list[str]:
    from packaging.metadata import Metadata

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = Metadata.from_email(archive.read(name), validate=False).requires_dist or []
    return [need.name for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]


def _with_requirements(names: list[str]) -> Iterator[metadata.Distribution]:
    """The distributions of these names and whatever they need in turn."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    while names:
        name = names.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        yield distribution
        for line in distribution.requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                names.append(need.name)


@pytest.fixture(scope="session")
def pictures() -> Iterator[Path]:
    """A folder of 24 coloured pictures in three class folders, drawn for this run."""
    import numpy as np
    from PIL import Image

    root = Path(tempfile.mkdtemp(prefix="edgecls-pictures-"))
    rng = np.random.default_rng(3)
    for index in range(24):
        folder = root / f"class {index % 3}"
        folder.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((40 + index, 52 - index), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def small():
    """A small network as a classifier, its graph and its plan: `(Classifier, Graph, QuantPlan)`."""
    import torch
    from networks import SmallNet, classifier, plan_of, settle

    from edgecls.export.trace import probe_pictures, trace

    torch.manual_seed(0)
    opened = classifier(settle(SmallNet()))
    graph = trace(opened).graph
    return opened, graph, plan_of(graph, probe_pictures(32, 32))


@pytest.fixture(scope="session")
def bundle_parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Manifest and members of a small fp32 bundle for ONNX Runtime, as `write_bundle` takes them.

    Where only the runtime is installed, `EDGECLS_TEST_BUNDLE` names one that was exported elsewhere.
    """
    from edgecls.runtime import Bundle

    given = os.environ.get("EDGECLS_TEST_BUNDLE")
    path = Path(given) if given else tmp_path_factory.mktemp("bundle") / "small.edgecls"
    if not given:
        from edgecls.export.job import export_bundle

        export_bundle(request.getfixturevalue("small")[0], target="onnxruntime", precision="fp32", output=path)
    bundle = Bundle(path)
    return bundle.manifest, {name: bundle.read(name) for name in bundle.manifest.members}


@pytest.fixture
def bundle_path(bundle_parts, tmp_path: Path) -> Path:
    """A fresh copy of that bundle."""
    from edgecls.runtime.bundle_writer import write_bundle

    path = tmp_path / "small.edgecls"
    write_bundle(path, *bundle_parts)
    return path
