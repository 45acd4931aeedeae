"""ONNX Runtime works for the user alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgecls.runtime import load
from edgecls.runtime.engines.onnxruntime import import_onnxruntime

REPOSITORY = Path(__file__).parents[2]


def test_nothing_is_kept_or_sent_about_the_user(bundle_path, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home)}
    code = "import sys; from edgecls.runtime import load; load(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, str(bundle_path)], env=environment, check=True)
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_computes_on_as_many_threads_as_were_asked_for(bundle_path, threads):
    with load(bundle_path, threads=threads) as session:
        assert session.engine._session.get_session_options().intra_op_num_threads == threads


def test_telemetry_is_the_users_own_decision(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_the_package_is_imported_in_one_place():
    folders = ("edgecls", "export", "calibration", "models", "bench", "runtime")
    bare = re.compile(r"^ +import onnxruntime|^import onnxruntime|^ *from onnxruntime", re.MULTILINE)
    guarded = "if TYPE_CHECKING:\n    import onnxruntime\n"
    found = [
        path
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*.py")
        if bare.search(path.read_text(encoding="utf-8").replace(guarded, ""))
    ]
    assert found == []
