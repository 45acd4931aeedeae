"""Whatever strangers send, the answer is an `EdgeclsError`, in bounded time and memory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.doors import DOORS, knock

HERE = Path(__file__).parent
CORPUS = sorted(path for path in (HERE / "corpus").glob("*/*"))
LONG_SECONDS = os.environ.get("EDGECLS_FUZZ_SECONDS", "240")
"""CPU time of the long run."""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_seed_and_every_finding_is_met(path):
    opened = knock(path.parent.name, path.read_bytes())
    assert opened or not path.name.startswith(("whole", "signed", "plain", "rich", "names", "tabs", "jpeg", "png"))


def test_every_door_has_seeds():
    assert {path.parent.name for path in CORPUS} == set(DOORS)


@pytest.mark.timeout(0)  # CPU time is limited instead
@pytest.mark.parametrize("seconds", ["4", pytest.param(LONG_SECONDS, marks=pytest.mark.slow)])
def test_fuzz(seconds):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (it has wheels for Python 3.11 on x86-64 Linux): nothing is fuzzed here")
    # What stands between two changes must not be chance: the short run tries the same again and again.
    seed = "0" if seconds == LONG_SECONDS else "1"
    command = [sys.executable, str(HERE / "run.py"), "--seconds", seconds, "--seed", seed]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert all(f"{door}: " in done.stdout for door in DOORS)
