import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgecls.bench.connection import Connection, GoneError, LostConnectionError
from edgecls.runtime.progress import SilentProgress


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Puts a program in the place of ssh."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(program))

    return put


RUN_THE_LAST_ARGUMENT = 'for last; do :; done; exec sh -c "$last"'


def test_what_a_start_up_file_prints_is_passed_over_without_its_line_break_too(ssh, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ssh(f"printf 'welcome\\n\\033]0;title\\007'; {RUN_THE_LAST_ARGUMENT}")
    connection = Connection("board", None, tmp_path, 1, SilentProgress())
    assert connection.ask("plan", job="x", files={"f": 3})["missing"] == {"f": 0}


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH")
@pytest.mark.parametrize(("folder", "shared"), [("/tmp/a b%c", True), (f"/tmp/{100 * 'x'}", False)])
def test_calls_share_a_connection_where_its_socket_can_lie(folder, shared):
    connection = Connection("board", None, Path(folder), 1, SilentProgress())
    told = subprocess.check_output([*connection._ssh, *connection._options, "-G", "board"], text=True)
    assert (f"controlpath {folder}/ssh\n" in told) == shared


@pytest.mark.parametrize(("lives_s", "attempts"), [(0, 9), (30, 5), (61, 20)])
def test_only_a_connection_that_has_lived_makes_up_for_those_before_it(ssh, tmp_path, monkeypatch, lives_s, attempts):
    clock, begun = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    ssh("exit 255")
    connection = Connection("board", None, tmp_path, 100, SilentProgress())

    def step():
        begun.append(clock[0])
        connection._met = clock[0]
        clock[0] += lives_s
        if len(begun) == 20:
            return "done"
        raise LostConnectionError("reset")

    if attempts == 20:
        assert connection.patiently(step) == "done"
    else:
        with pytest.raises(GoneError, match="within 100 s"):
            connection.patiently(step)
    assert len(begun) == attempts
