"""Emulators of other CPUs.

`python tests/qemu.py x86_64` fetches one ahead of time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from debian import unpacked


def emulator(architecture: str) -> Path:
    """The program that runs another CPU's programs as processes of this machine: `qemu-x86_64`, `qemu-aarch64`.

    A process that the guest starts runs on the real CPU: guests should start none.

    Raises:
        UnavailableError: It is not in the cache and cannot be fetched.
    """
    program = f"usr/bin/qemu-{architecture}"
    return unpacked(f"qemu-{architecture}", ["qemu-user"], members=[f"./{program}"]) / program


if __name__ == "__main__":
    print(emulator(sys.argv[1]))
