"""The old file or the new one, whatever happens in between."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgecls.runtime.atomic_file import PART_PATTERN, atomic_file, refuse_overwriting
from edgecls.runtime.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("old", [None, b"old"])
def test_replaces(tmp_path, old):
    target = tmp_path / "a.edgecls"
    if old is not None:
        target.write_bytes(old)
    with atomic_file(target) as file:
        file.write(b"new ")
        assert (target.read_bytes() if target.exists() else None) == old
        file.seek(0)
        file.write(b"NEW")
    assert target.read_bytes() == b"NEW "
    assert names(tmp_path) == ["a.edgecls"]


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_file("a") as file:
        file.write(b"x")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), InputError("no")])
def test_exception_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_file(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_foreign_oserror_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_mode_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_a_replaced_file_keeps_its_mode_from_the_beginning(tmp_path, mode):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"secret")
        file.flush()
        (part,) = tmp_path.glob(PART_PATTERN)
        assert stat.S_IMODE(part.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == b"secret"


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_replaced_file_keeps_its_owner(tmp_path):
    (tmp_path / "a").touch(0o640)
    os.chown(tmp_path / "a", 12345, 12346)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 12346, 0o640)


def test_threads_do_not_meet(tmp_path):
    def write(number: int) -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a").read_bytes()
    assert content == content[:1] * 1000
    assert names(tmp_path) == ["a"]


@posix
def test_link_is_written_through(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@posix
def test_an_input_is_not_overwritten_by_its_name_nor_by_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    Path("link").symlink_to("a")
    refuse_overwriting("b", ["a", tmp_path / "link"])
    for path, source in (("a", tmp_path / "a"), ("link", "a"), ("a", "link")):
        with pytest.raises(InputError, match=f"{path} is read by this command"):
            refuse_overwriting(path, ["b", source])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/a", "No such file or directory. Choose a folder"), ("file/a", "Not a directory"), ("", "is not a file")],
)
def test_places_that_cannot_be_written(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write .*{reason}"), atomic_file(tmp_path / name):
        pass
    assert names(tmp_path) == ["file"]


@posix
def test_devices_are_not_replaced():
    with pytest.raises(InputError, match="is not a file"), atomic_file("/dev/null"):
        pass
    assert not Path("/dev/null").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), atomic_file(tmp_path / "a"):
        pass


def test_name_as_long_as_the_file_system_allows(tmp_path):
    name = "n" * 255
    with atomic_file(tmp_path / name) as file:
        file.write(b"x")
    assert names(tmp_path) == [name]


FULL_DISK = """
import resource, signal, sys, zipfile
from edgecls.runtime.atomic_file import PART_PATTERN, atomic_file
from edgecls.runtime.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_file(sys.argv[1]) as file:
        if sys.argv[2] == "plain":
            file.write(bytes(200_000))
        elif sys.argv[2] == "at the end":
            file.write(bytes(99_000))
            file.write(bytes(2_000))
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("a", bytes(200_000))
except InputError as error:
    print(error)
    raise SystemExit(2)
"""


@posix
@pytest.mark.parametrize("how", ["plain", "at the end", "zip"])
def test_full_disk(tmp_path, how):
    (tmp_path / "a").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "a"), how], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "a: File too large. Choose a folder that exists, is writable and has room." in done.stdout
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


KILLED = """
import sys, time
from edgecls.runtime.atomic_file import PART_PATTERN, atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(bytes(1_000_000))
    print("half", flush=True)
    time.sleep(60)
"""


@posix
@pytest.mark.parametrize("old", [None, b"old"])
def test_killed_process(tmp_path, old):
    target = tmp_path / "a"
    if old is not None:
        target.write_bytes(old)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert (target.read_bytes() if target.exists() else None) == old
