"""The house stands: no floor imports from above, and every package is in the distribution."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FLOORS = ["export", "calibration", "models", "bench", "runtime"]


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """The packages as one tree of links: import-linter does not follow the mapping of an editable installation."""
    package = tmp_path_factory.mktemp("floors") / "edgecls"
    package.mkdir()
    for entry in (ROOT / "edgecls").iterdir():
        (package / entry.name).symlink_to(entry)
    for floor in FLOORS:
        (package / floor).symlink_to(ROOT / floor)
    return package.parent


def lint(linked):
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(linked)}
    return subprocess.run(command, env=environment, cwd=linked, capture_output=True, text=True)


def test_no_floor_imports_from_above(linked):
    done = lint(linked)
    assert done.returncode == 0, done.stdout


def test_the_contract_notices_an_import_from_above(linked):
    (linked / "edgecls" / "bench").unlink()
    (linked / "edgecls" / "bench").mkdir()
    (linked / "edgecls" / "bench" / "__init__.py").write_text("from edgecls.models import open_classifier\n")
    done = lint(linked)
    assert done.returncode == 1
    assert "edgecls.bench is not allowed to import edgecls.models" in done.stdout


def test_every_package_is_in_the_distribution():
    found = {
        ".".join(["edgecls", *folder.relative_to(ROOT).parts])
        for floor in FLOORS
        for folder in [ROOT / floor, *(ROOT / floor).rglob("*")]
        if (folder / "__init__.py").is_file()
    }
    found |= {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "edgecls").rglob("__init__.py")}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_folder_of_modules_is_a_package():
    folders = {file.parent for floor in ["edgecls", *FLOORS] for file in (ROOT / floor).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_types_are_published():
    assert (ROOT / "edgecls" / "py.typed").is_file()
