"""ONNX Runtime works for the user alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_nothing_is_kept_or_sent_about_the_user(bundle_path, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home)}
    code = "import sys; from edgecls.runtime import load; load(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, str(bundle_path)], env=environment, check=True)
    assert list(home.rglob("*")) == []


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
