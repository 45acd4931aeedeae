"""The runtime from its wheel on another Python than the one that these tests run on."""

from __future__ import annotations

import json

import pytest
from debian import UnavailableError
from debian_python import VERSION, debian_python, fast_wheel, run, run_runtime_tests, site_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def python():
    try:
        return debian_python("amd64")
    except UnavailableError as error:
        pytest.skip(f"PYTHON {VERSION} WAS NOT TRIED: {error}")


@pytest.fixture(scope="module")
def site(python, wheel, tmp_path_factory):
    return site_of(tmp_path_factory.mktemp("site"), [wheel, fast_wheel(tmp_path_factory.mktemp("fast"))])


@pytest.fixture(scope="module")
def bundle(bundle_parts, tmp_path_factory):
    from edgecls.runtime.bundle_writer import write_bundle

    path = tmp_path_factory.mktemp("bundle") / "small.edgecls"
    write_bundle(path, *bundle_parts)
    return path


def test_a_bundle_verifies(python, site, bundle, tmp_path):
    code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    assert run(python, site, "-c", code, folder=tmp_path).stdout.strip() == VERSION
    done = run(python, site, "-m", "edgecls", "verify", str(bundle), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]


def test_tests_of_the_runtime_pass(python, site, bundle, tmp_path, capfd):
    summary = run_runtime_tests(python, site, bundle, folder=tmp_path)
    with capfd.disabled():
        print(f"\ntests/runtime on Python {VERSION}: {summary.splitlines()[-1]}")
