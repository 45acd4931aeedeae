"""The wheel holds everything, fits every board, and works where nothing but the base and one engine is installed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import pytest
import tomllib

from edgecls.runtime.bundle_writer import write_bundle

REPOSITORY = Path(__file__).parents[1]
MAIN = "import sys; from edgecls.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def project() -> dict:
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def modules_of_tree(project: dict) -> set[str]:
    """Every Python file of the package folders, by its path in the wheel."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(REPOSITORY / folder).as_posix()}"
        for package, folder in project["tool"]["setuptools"]["package-dir"].items()
        for path in (REPOSITORY / folder).rglob("*.py")
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(REPOSITORY / folder).parts)
    }


def test_every_folder_with_code_is_a_declared_package(project):
    folders = {module.rpartition("/")[0].replace("/", ".") for module in modules_of_tree(project)}
    assert folders == set(project["tool"]["setuptools"]["packages"])
    assert all(f"{folder.replace('.', '/')}/__init__.py" in modules_of_tree(project) for folder in folders)


def test_wheel_is_pure_and_complete(wheel, project):
    assert wheel.name == f"edgecls-{project['project']['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (tag,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: true" in archive.read(tag).decode()
    assert {name for name in names if name.endswith(".py")} == modules_of_tree(project)
    assert {"edgecls/py.typed", "edgecls/bench/report.schema.json"} <= names
    assert {name.split("/")[0] for name in names} == {"edgecls", tag.split("/")[0]}


def test_runtime_imports_on_a_device(run_on_device, device_python):
    done = run_on_device("import edgecls.runtime; print(edgecls.runtime.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(device_python.parents[1])


@pytest.mark.parametrize("package", ["torch", "torchvision", "timm", "onnx", "openvino", "scipy", "pip", "pytest"])
def test_device_has_nothing_else(run_on_device, package):
    done = run_on_device(f"import {package}")
    assert "ModuleNotFoundError" in done.stderr


def test_engines_list_themselves_on_a_device(run_on_device):
    done = run_on_device(
        "from edgecls.runtime.engines import engine_module, engine_names\n"
        "print(*(f'{name}={engine_module(name).version() is not None}' for name in engine_names()))"
    )
    assert done.returncode == 0, done.stderr
    files = {path.stem for path in (REPOSITORY / "runtime" / "engines").glob("*.py")} - {"__init__"}
    files = {name.replace("_", "-") for name in files}
    assert set(done.stdout.split()) == {f"{name}={name == 'onnxruntime'}" for name in files}


def test_preprocessing_runs_on_a_device(run_on_device):
    done = run_on_device(
        "from edgecls.runtime import Preprocess\n"
        "import numpy\n"
        "description = Preprocess(resize_px=40, crop_px=32, mean=(0, 0, 0), std=(1, 1, 1))\n"
        "print(description.pixels(numpy.full((60, 50, 3), 7, numpy.uint8)).sum())"
    )
    assert done.stdout.strip() == str(32 * 32 * 3 * 7), done.stderr


@pytest.mark.skipif(not (REPOSITORY / "edgecls" / "cli.py").exists(), reason="there is no command line yet")
def test_command_line_answers_on_a_device(run_on_device):
    done = run_on_device("import sys; sys.argv = ['edgecls', '--help']; from edgecls.cli import main; sys.exit(main())")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.fixture
def edgecls_on_device(run_on_device, bundle_path):
    """Runs the command line on the device, in a folder that holds `small.edgecls` and is not the repository."""

    def run(*arguments: str):
        done = run_on_device(MAIN, *arguments)
        assert "Traceback" not in done.stderr
        return done

    return run


def test_a_device_runs_a_bundle(edgecls_on_device, pictures):
    picture = next(pictures.rglob("*.png"))
    done = edgecls_on_device("classify", "small.edgecls", str(picture), "--top", "2", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert len(result["predictions"]) == 2
    done = edgecls_on_device("verify", "small.edgecls")
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    done = edgecls_on_device("inspect", "small.edgecls")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout


def test_a_device_measures_and_judges(edgecls_on_device, run_on_device, bundle_parts, bundle_path, pictures):
    manifest, files = bundle_parts
    write_bundle(bundle_path.with_name("other.edgecls"), msgspec.structs.replace(manifest, name="other"), files)
    arguments = ["other.edgecls", "--reference", "small.edgecls", "--data", str(pictures)]
    done = edgecls_on_device("bench", *arguments, "--no-latency")
    assert done.returncode == 0, done.stderr
    done = edgecls_on_device("gate", "report.json", "--max-drop", "50pp", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "pass"
    done = run_on_device(
        "import sys; from edgecls.bench.measure import measure; "
        "report = measure(['small.edgecls'], sys.argv[1], output='report.json', profile='smoke', accuracy=False); "
        "print(report.valid, report.runs[0].latency.n > 0)",
        str(pictures),
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_device_says_how_to_get_the_rest(edgecls_on_device):
    done = edgecls_on_device("targets")
    assert done.returncode == 0, done.stderr
    assert "pip install 'edgecls[openvino]'" in done.stdout
    assert "pip install 'edgecls[export]'" in done.stdout
    for command in (["export", "resnet18", "--target", "onnxruntime"], ["demo"]):
        done = edgecls_on_device(*command)
        assert done.returncode == 5
        assert "pip install 'edgecls[" in done.stderr
