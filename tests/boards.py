"""Boards that are not here, laid out as files from what `tests/data/devices` knows of them."""

import json
import shlex
from pathlib import Path

DEVICES = Path(__file__).with_name("data") / "devices"


def lay_out(board: str, folder: Path) -> Path:
    """Writes a board's files and tools below a folder, which is the root to give to readers."""
    recorded = json.loads((DEVICES / f"{board}.json").read_text())
    for path, text in recorded["files"].items():
        write(folder, path, text)
    for command, answer in recorded["tools"].items():
        set_tool(folder, command, answer)
    return folder


def private(board: str) -> list[str]:
    """What lies on the board and must stand in no report."""
    return json.loads((DEVICES / f"{board}.json").read_text())["private"]


def write(root: Path, path: str, text: str) -> None:
    """Writes a file of a board."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def set_tool(root: Path, command: str, answer: str) -> None:
    """Lets a board's tool answer to one way of calling it; what it answered to others stays."""
    name, *arguments = command.split()
    script = root / "usr/bin" / name
    if not script.exists():
        write(root, f"usr/bin/{name}", "#!/bin/sh\n")
        script.chmod(0o755)
    lines = [line for line in script.read_text().splitlines() if f"= {shlex.quote(' '.join(arguments))} " not in line]
    lines.append(f'[ "$*" = {shlex.quote(" ".join(arguments))} ] && printf %s {shlex.quote(answer.strip())}')
    script.write_text("\n".join([*[line for line in lines if line != "exit 0"], "exit 0"]) + "\n")
