from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgecls.bench.scratch import scratch_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of folders are POSIX's")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    os.utime(folder, (1, 1))


def test_a_folder_lives_as_long_as_its_block(temporary: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == temporary
        (folder / "file").touch()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_the_living_are_left_alone(temporary: Path) -> None:
    code = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from edgecls.bench.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'crops.npy').touch(); print(folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(temporary)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        age(left)
        with scratch_folder():
            assert left.is_dir()
        process.kill()
        process.wait()
    young, foreign = temporary / "edgecls-bench-young", temporary / "something-else"
    young.mkdir()
    foreign.mkdir()
    age(foreign)
    age(left)
    with scratch_folder() as folder:
        assert set(temporary.iterdir()) == {young, foreign, folder}


def test_links_are_not_followed(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("precious")
    age(precious)
    (temporary / "edgecls-bench-link").symlink_to(precious)
    os.utime(temporary / "edgecls-bench-link", (1, 1), follow_symlinks=False)
    with scratch_folder():
        pass
    assert precious.is_dir()
