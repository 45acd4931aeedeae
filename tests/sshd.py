"""Boards that are this machine: a real OpenSSH server on loopback, with a home, a Python and packages of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from debian import UnavailableError, unpacked

_START_S = 60.0


class Board:
    """One server, and `ssh_config` for the way to it: `board` is its name there.

    Args:
        folder: For its files.
        environment: Of its sessions, beside a home that is empty at first.
    """

    host = "board"

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.home, self.ssh_config = folder / "home", folder / "ssh_config"
        self.home.mkdir()
        self._log = folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host_key", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=60)
        self._port = _free_port()
        known = f"[127.0.0.1]:{self._port} {(folder / 'host_key.pub').read_text()}"
        (folder / "known_hosts").write_text(known)
        self.ssh_config.write_text(
            f"Host {self.host}\n  HostName 127.0.0.1\n  Port {self._port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / 'key'}\n  IdentitiesOnly yes\n  BatchMode yes\n"
            f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
        )
        settings = " ".join(f'"{name}={value}"' for name, value in {"HOME": self.home, **environment}.items())
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self._port}\nHostKey {folder / 'host_key'}\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"AuthorizedKeysFile {folder / 'key.pub'}\n"
            f"SetEnv {settings}\n"
        )
        server, libraries = _server()
        self._command = [server, "-D", "-e", "-f", str(folder / "sshd_config")]
        if os.geteuid() == 0:
            self._command = _with_privileges(self._command, folder)
        self._environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)} if libraries else None
        self.start()

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"sshd does not start: {self._log.read_text(errors='replace').strip()}")
            time.sleep(0.1)

    def cut(self) -> int:
        """Kills the server's side of every connection; returns how many there were."""
        assert self._process is not None
        sessions = psutil.Process(self._process.pid).children()
        for session in sessions:
            session.kill()
        psutil.wait_procs(sessions)
        return len(sessions)

    def stop(self) -> None:
        """Ends the server and its connections."""
        if self._process is not None and self._process.poll() is None:
            sessions = psutil.Process(self._process.pid).children()
            self._process.kill()
            self._process.wait()
            for session in sessions:
                with contextlib.suppress(psutil.NoSuchProcess):
                    session.kill()

    def left(self) -> list[str]:
        """Everything in the home but the folder of caches, which every user has."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path != self.home / ".cache")

    def processes(self) -> list[str]:
        """The command lines of everything that runs from the home."""
        lines = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                lines.append(shlex.join(process.cmdline()))
        return [line for line in lines if str(self.home) in line]


def board_bin(folder: Path) -> Path:
    """A folder with what a board has on its PATH: `python3`, this interpreter without its environment."""
    folder.mkdir()
    (folder / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
    return folder


def _server() -> tuple[str, Path | None]:
    """The program, and the folder of libraries that it needs: the system's, or Debian's in the cache."""
    if system := shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
        return system, None
    # Not the newest: its library of the system's is in every Debian since, and in Ubuntu.
    root = unpacked("sshd", ["openssh-server", "libwrap0"], suite="bookworm")
    (library,) = root.rglob("libwrap.so.0")
    return str(root / "usr/sbin/sshd"), library.parent


def _with_privileges(command: list[str], folder: Path) -> list[str]:
    """Root's sshd wants a user `sshd` and `/run/sshd`: both are there for itself alone."""
    passwd = folder / "passwd"
    passwd.write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    script = (
        f"mount --bind {shlex.quote(str(passwd))} /etc/passwd && mount -t tmpfs tmpfs /run && mkdir /run/sshd "
        f"&& exec {shlex.join(command)}"
    )
    return ["unshare", "--mount", "sh", "-c", script]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
