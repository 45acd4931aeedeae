"""A connection to a board by the system's OpenSSH: its configuration, keys, agents and jump hosts are the user's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from edgecls.bench import board
from edgecls.runtime.errors import EdgeclsError, InputError, UnsupportedError
from edgecls.runtime.progress import Progress

Result = TypeVar("Result")

_LOST = 255
"""ssh's own exit code; no command of ours has it."""
_NOT_FOUND, _TOO_OLD = 127, 99
_LONGEST_WAIT_S = 30.0
_STABLE_S = 60.0
"""A connection that lived for so long makes up for those that failed before it."""
_LONGEST_SOCKET = 80
"""Characters: systems take about 104 in the address of a socket, and ssh adds 17 while it makes one."""

_OPTIONS = {
    "ConnectTimeout": 20,
    "ServerAliveInterval": 15,  # a board that is gone is noticed within a minute
    "ServerAliveCountMax": 3,
    "ClearAllForwardings": "yes",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}


class LostConnectionError(Exception):
    """ssh failed, for the reason that it gives."""


class GoneError(InputError):
    """A lost connection did not come back: nothing on the board can be tidied up now."""


class Connection:
    """Calls the verbs of `board.Board`.

    Args:
        host: As ssh takes it: `user@board`, a name of the ssh configuration, `ssh://user@board:2222`.
        ssh_config: A file in place of `~/.ssh/config`.
        folder: For a socket that all calls share, so that a password is asked for once; without one each connects.
        patience_s: How long a lost connection is waited for.
    """

    def __init__(self, host: str, ssh_config: Path | None, folder: Path, patience_s: float, progress: Progress) -> None:
        self.host = host
        self._patience_s, self._progress = patience_s, progress
        self._met: float | None = None
        """When the board last answered."""
        if host.startswith("-") or not host.strip():
            raise InputError(f"{host!r} is no host: give it as ssh takes it, for example pi@raspberrypi.local")
        ssh = shutil.which("ssh")
        if ssh is None:
            raise UnsupportedError("`--host` needs OpenSSH, and there is no `ssh` on the PATH: install openssh-client")
        self._ssh = [ssh, *([] if ssh_config is None else ["-F", str(ssh_config)])]
        options = {**_OPTIONS}
        socket = str(folder / "ssh")
        self._shares = os.name == "posix" and len(socket) <= _LONGEST_SOCKET
        if self._shares:
            quoted = '"' + socket.replace("%", "%%") + '"'
            options |= {"ControlMaster": "auto", "ControlPath": quoted, "ControlPersist": 60}
        self._options = [f"-o{name}={value}" for name, value in options.items()]
        self._source = Path(board.__file__).read_bytes() + b"\nserve()\n"

    def close(self) -> None:
        """Ends the connection that calls share."""
        if self._shares:
            command = [*self._ssh, *self._options, "-O", "exit", "--", self.host]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def patiently(self, step: Callable[[], Result]) -> Result:
        """Does a step, and again after a lost connection, for as long as patience lasts.

        Raises:
            InputError: There was no connection in the first place: check host, network and keys.
            GoneError: It did not come back: do the same again, which goes on.
        """
        lost: float | None = None  # when it was, if it has not come back since
        wait_s = 1.0
        while True:
            try:
                return step()
            except LostConnectionError as error:
                if self._met is None:
                    raise InputError(
                        f"cannot connect to {self.host}: {error}. Try `{shlex.join([*self._ssh, self.host])}`."
                    ) from error
                now = time.monotonic()
                if lost is None or (self._met > lost and now - self._met > _STABLE_S):
                    lost, wait_s = now, 1.0
                left_s = lost + self._patience_s - now
                if left_s <= 0:
                    raise GoneError(
                        f"the connection to {self.host} is lost and did not come back within {self._patience_s:.0f} s "
                        f"({error}). What was sent is kept there, and a measurement that has begun goes on: "
                        "run the same command again to go on."
                    ) from error
                self._progress.note(f"{self.host}: the connection is lost ({error}); connecting again")
                time.sleep(min(wait_s, left_s))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """As `call`, patiently, for an answer that nothing follows."""

        def step() -> dict[str, Any]:
            with self.call(verb, **request) as reply:
                return self.answer(reply)

        return self.patiently(step)

    def answer(self, reply: IO[bytes]) -> dict[str, Any]:
        """The line of JSON that a verb answers with.

        Raises:
            LostConnectionError: It has not arrived.
            InputError: The board's system refuses what the verb does.
        """
        line = reply.readline()
        if not line.endswith(b"\n"):
            raise LostConnectionError("it ended in the middle of an answer")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise InputError(f"{self.host} refuses: {document['error']}. Make room or give leave there, and try again.")
        return document

    @contextlib.contextmanager
    def call(self, verb: str, payload: Iterable[bytes] = (), **request: Any) -> Iterator[IO[bytes]]:
        """Calls a verb once.

        Args:
            verb: Name of a method of `board.Board`.
            payload: What follows on its standard input.
            request: Its arguments.

        Yields:
            Its standard output, after the marker.

        Raises:
            LostConnectionError: The connection failed.
            UnsupportedError: The board has no Python that edgecls runs on.
        """
        start = (
            "import sys; sys.version_info < (3, 10) and sys.exit(99); "
            f"exec(sys.stdin.buffer.read({len(self._source)}).decode())"
        )
        # Double quotes around nothing special: every login shell takes that, fish and csh too.
        command = [*self._ssh, *self._options, "--", self.host, f'exec python3 -c "{start}"']
        with tempfile.TemporaryFile() as errors:  # no pipe: the shared connection of an old ssh would hold it open
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                # What a call that has ended does not take shows in its answer, or in that it has none.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    asked = json.dumps({"verb": verb, **request}).encode()
                    for block in itertools.chain((self._source, asked, b"\n"), payload):
                        process.stdin.write(block)
                    process.stdin.flush()
                while line := process.stdout.readline():
                    if line.endswith(board.MARKER):  # what was printed before may lack its line break
                        self._met = time.monotonic()
                        yield process.stdout
                        break
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.close()
                exit_code = process.wait()
            finally:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.close()
                process.kill()
                process.wait()
                process.stdout.close()
            if exit_code != 0 or not line:
                errors.seek(0)
                raise self._failure(exit_code, errors.read().decode("utf-8", "replace").strip())

    def _failure(self, exit_code: int, said: str) -> Exception:
        last = said.splitlines()[-1] if said else "it was closed"
        if exit_code in (0, _LOST):
            return LostConnectionError(last)
        if exit_code in (_NOT_FOUND, _TOO_OLD):
            found = "has no python3" if exit_code == _NOT_FOUND else "has a python3 that is too old"
            return UnsupportedError(
                f"{self.host} {found}: edgecls needs Python 3.10 or newer there, as `python3` on the PATH of ssh "
                "commands. On Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3 python3-venv"
            )
        return EdgeclsError(
            f"{self.host}: {last} (exit code {exit_code}). This is a bug in edgecls, or no POSIX board."
        )
