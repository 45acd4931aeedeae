"""The cache of built engines: whole or not at all, ours alone, built once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls.runtime.engine_cache import CacheFolder, DamagedFileError, cache_path
from edgecls.runtime.errors import InputError
from edgecls.runtime.progress import SilentProgress


@pytest.fixture
def cache(tmp_path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache")


def test_what_is_written_is_read(cache):
    assert cache.read("a.engine") is None
    cache.write("a.engine", b"plan")
    cache.write("a.engine", b"another plan")
    assert cache.read("a.engine") == b"another plan"


@given(data=st.data())
def test_every_cut_and_every_flip_is_noticed(tmp_path_factory, data):
    cache = CacheFolder(tmp_path_factory.mktemp("cache"))
    cache.write("a.engine", bytes(range(64)))
    path = cache.path / "a.engine"
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:position] + (
        b"" if data.draw(st.booleans()) else bytes([whole[position] ^ 1]) + whole[position + 1 :]
    )
    path.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=r"a\.engine is damaged"):
        cache.read("a.engine")


def test_the_folder_is_the_users_alone(tmp_path):
    assert (CacheFolder(tmp_path / "cache").path.stat().st_mode & 0o777) == 0o700
    (tmp_path / "open").mkdir()
    for mode in (0o777, 0o770, 0o702):
        (tmp_path / "open").chmod(mode)
        with pytest.raises(InputError, match=r"others may write to the cache folder .*chmod go-w.*EDGECLS_CACHE"):
            CacheFolder(tmp_path / "open")
    (tmp_path / "open").chmod(0o755)
    CacheFolder(tmp_path / "open")


def test_another_users_folder_is_refused(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InputError, match=r"another user's.*EDGECLS_CACHE"):
        CacheFolder(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders of root's to lend")
def test_roots_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert CacheFolder(tmp_path).read("a.engine") is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the cache folder .* cannot be used.*EDGECLS_CACHE"):
        CacheFolder(tmp_path / "file" / "cache")


def test_where_it_lies(monkeypatch):
    monkeypatch.delenv("EDGECLS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_path() == Path.home() / ".cache" / "edgecls"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: relative ones are to be ignored
    assert cache_path() == Path.home() / ".cache" / "edgecls"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_path() == Path("/elsewhere/edgecls")
    monkeypatch.setenv("EDGECLS_CACHE", "~/mine")
    assert cache_path() == Path.home() / "mine"


BUILD_UNDER_LOCK = """
import sys, time
from pathlib import Path
from edgecls.runtime.engine_cache import CacheFolder
from edgecls.runtime.progress import SilentProgress
folder, me = Path(sys.argv[1]), sys.argv[2]
cache = CacheFolder(folder)
(folder / f"ready-{me}").touch()
while len(list(folder.glob("ready-*"))) < 3:
    time.sleep(0.01)
with cache.lock("engine", SilentProgress()):
    if cache.read("engine") is None:
        time.sleep(0.2)
        with open(folder / "builds", "a") as file:
            print(me, file=file)
        cache.write("engine", b"plan")
"""


def test_processes_that_build_at_once_build_once(cache, tmp_path):
    commands = [[sys.executable, "-c", BUILD_UNDER_LOCK, str(cache.path), str(index)] for index in range(3)]
    processes = [subprocess.Popen(command, cwd=tmp_path) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len((cache.path / "builds").read_text().splitlines()) == 1


def test_who_waits_is_told(cache):
    heard = threading.Event()

    class Listening(SilentProgress):
        def note(self, message):
            assert "waiting" in message
            heard.set()

    def second():
        with cache.lock("engine", Listening()):
            pass

    with cache.lock("engine", SilentProgress()):
        thread = threading.Thread(target=second)
        thread.start()
        assert heard.wait(30)
    thread.join(30)
    assert not thread.is_alive()


def test_the_lock_of_a_failed_build_is_free(cache):
    with pytest.raises(ValueError, match="no"), cache.lock("engine", SilentProgress()):
        raise ValueError("no")
    with cache.lock("engine", SilentProgress()):
        pass
