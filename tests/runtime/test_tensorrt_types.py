"""The code that calls TensorRT, type-checked against the types of a real one (tensorrt-stubs)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def search_path(tmp_path: Path) -> Path:
    """The packages as a tree of links, and the stubs, whose 10.13 has two kinds of slips that no checker can parse."""
    try:
        files = metadata.distribution("tensorrt-stubs").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed here")
    pytest.importorskip("mypy", reason="mypy is not installed here")
    for file in files:
        if file.suffix == ".pyi":
            target = tmp_path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            text = Path(str(file.locate())).read_text(encoding="utf-8")
            text = text.replace(" in: list", " inputs: list").replace(
                ", channel_axis: int)", ", channel_axis: int = ...)"
            )
            target.write_text(text, encoding="utf-8")
    package = tmp_path / "edgecls"
    package.mkdir()
    (package / "__init__.py").symlink_to(REPOSITORY / "edgecls" / "__init__.py")
    (package / "runtime").symlink_to(REPOSITORY / "runtime")
    return tmp_path


def check(search_path: Path, settings: str) -> subprocess.CompletedProcess[str]:
    (search_path / "mypy.ini").write_text(settings)
    modules = [f"edgecls.runtime.tensorrt_{name}" for name in ("api", "builder", "engine")]
    arguments = ["--config-file=mypy.ini", "--cache-dir=cache", *(part for name in modules for part in ("-m", name))]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *arguments],
        cwd=search_path,
        env={**os.environ, "MYPYPATH": str(search_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )


SETTINGS = """
[mypy]
strict = true
warn_unreachable = true
[mypy-tensorrt.*,tensorrt_bindings.*,tensorrt_libs.*]
ignore_errors = true
ignore_missing_imports = true
"""


def test_the_engine_fits_the_types_of_tensorrt(search_path):
    done = check(search_path, SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_tensorrt_lacks_would_be_noticed(search_path):
    stub = search_path / "tensorrt_bindings" / "tensorrt.pyi"
    stub.write_text(stub.read_text(encoding="utf-8").replace("def execute_async_v3", "def execute_async_v4"))
    done = check(search_path, SETTINGS)
    assert done.returncode == 1
    assert '"execute_async_v3"' in done.stdout
