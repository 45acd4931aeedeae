"""Ray's workers that die cost no other task anything."""

import os

import pytest
from sweep_work import die_when_told

from edgecls.export.sweep_ray import ray_cluster, run_on_ray
from edgecls.runtime import InputError

pytest.importorskip("ray", reason="ray, of the extra 'sweep', is not installed")

pytestmark = [
    # Ray's own: files and sockets that it leaves to the garbage collector, and announcements of coming versions.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.slow
def test_a_task_whose_worker_died_is_tried_once_more(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    tasks = [(kind, str(tmp_path / kind)) for kind in ("well", "once", "refused", "always")]
    with ray_cluster("local", 2):
        answers = {kind: answer for (kind, _), answer in run_on_ray(die_when_told, tasks)}
    assert answers.pop("always").startswith("its process died 2 times; Ray says: ")
    assert answers == {"well": None, "once": None, "refused": "refused refused"}
    lives = {kind: (tmp_path / kind).read_text().split() for kind, _ in tasks}
    assert {kind: len(pids) for kind, pids in lives.items()} == {"well": 1, "once": 2, "refused": 1, "always": 2}
    assert len({pid for pids in lives.values() for pid in pids}) == 6
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_address_that_nobody_has(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(InputError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"), ray_cluster("127.0.0.1:9", 1):
        raise AssertionError("connected")
