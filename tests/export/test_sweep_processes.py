"""Processes that die cost no other task anything."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from sweep_work import die_when_told, wait_or_answer

from edgecls.export.sweep_processes import run_in_processes

KINDS = ["well", "once", "refused", "always", "well too"]


def lives(task):
    return Path(task[1]).read_text().split()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_task_whose_process_died_is_tried_once_more(jobs, tmp_path):
    tasks = [(kind, str(tmp_path / kind)) for kind in KINDS]
    answers = dict(run_in_processes(die_when_told, tasks, jobs))
    assert {kind: answers[kind, file] for kind, file in tasks if kind != "always"} == {
        "well": None,
        "once": None,
        "refused": "refused refused",
        "well too": None,
    }
    assert "died 2 times, now of signal SIGKILL" in answers[tasks[3]]
    assert [len(lives(task)) for task in tasks] == [1, 2, 1, 2, 1]
    pids = [pid for task in tasks for pid in lives(task)]
    assert len(set(pids)) == len(pids)
    assert str(os.getpid()) not in pids


def wait_for(path):
    deadline = time.monotonic() + 300
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())


def ended(pid):
    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_processes_end_with_their_parent(tmp_path):
    endless = tmp_path / "endless"
    code = (
        "import sys; from sweep_work import wait_for_ever as work\n"
        "from edgecls.export.sweep_processes import run_in_processes\n"
        "list(run_in_processes(work, sys.argv[1:], 1))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code, str(endless)], env=environment, cwd=tmp_path)
    child = wait_for(endless)
    parent.kill()
    parent.wait()
    assert ended(child)


def test_who_stops_listening_ends_the_processes(tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    with closing(run_in_processes(wait_or_answer, [("wait", str(files[0])), ("", str(files[1]))], 2)) as answers:
        assert next(answers)[1] is None
        child = wait_for(files[0])
    assert ended(child)
