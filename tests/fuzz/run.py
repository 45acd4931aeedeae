"""Fuzzes every door for some CPU time: `python tests/fuzz/run.py --seconds 1440`.

Needs atheris (libFuzzer for Python: the mutations that reach new lines of edgecls, Pillow and zipfile are kept). Each
door has a process of its own, whose address space is limited. What it finds is written beside the seeds, as
`corpus/DOOR/found-...`, from where the tests take it; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parent / "corpus"
DOORS = ("picture", "bundle", "manifest", "plan", "labels")
HOSTILE = (None, True, -1, 0, 1 << 40, 1 << 70, 1e308, 0.5, "", "\x1b[31m", "a" * 2000, "../up", "\ud800", [], {}, [[]])


def main() -> int:
    """Divides the time between the doors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="CPU time of all doors together")
    parser.add_argument("--door", choices=DOORS, action="append", help="by default all; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="0: a new one")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    doors = options.door or DOORS
    if options.alone:
        fuzz(doors[0], options.seconds, options.seed)
    command = [sys.executable, str(CORPUS.parent / "run.py"), "--alone", "--seed", str(options.seed), "--seconds"]
    failed = 0
    for door in doors:
        begun = [*command, str(options.seconds / len(doors)), "--door", door]
        # Decoders complain of every input on standard error: only the last lines are worth reading.
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
            if subprocess.run(begun, cwd=folder, env={**os.environ, "TMPDIR": folder}, stderr=log).returncode:
                failed = 1
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
                print(log.read().decode(errors="replace"), f"{door}: FAILED", sep="\n", flush=True)
    return failed


def fuzz(door: str, seconds: float, seed: int) -> None:
    """Fuzzes one door in this process, and ends it."""
    import warnings

    import atheris

    warnings.simplefilter("ignore")
    sys.path.insert(0, str(CORPUS.parents[1]))
    with atheris.instrument_imports(include=["edgecls.runtime", "edgecls.commands", "PIL", "zipfile"]):
        from fuzz import doors
    for path in (CORPUS / door).iterdir():  # what is loaded late is loaded before memory is limited
        if not path.name.startswith("found-"):
            doors.knock(door, path.read_bytes())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + doors.MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    executions = opened = 0
    began, told = time.process_time(), 0.0

    def one(data: bytes) -> None:
        nonlocal executions, opened, told
        executions += 1
        opened += doors.knock(door, data)
        spent = time.process_time() - began
        if spent > min(seconds, told + 30):
            told = spent
            rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{door}: {executions} inputs, {opened} accepted, {spent:.0f} s of CPU time, {rss_mb} MB", flush=True)
        if spent > seconds:
            os._exit(0)

    # The first folder takes what reaches new lines; it is the temporary working folder. A hang is one of the wall.
    arguments = ["fuzz", ".", str(CORPUS / door), f"-artifact_prefix={CORPUS / door}/found-", f"-seed={seed}"]
    arguments += [f"-max_len={doors.MAX_BYTES}", "-timeout=300", "-rss_limit_mb=0", "-verbosity=0"]
    mutators = {"picture": mutated_picture, "manifest": mutated_json, "plan": mutated_json}
    atheris.Setup(arguments, one, **({"custom_mutator": mutators[door]} if door in mutators else {}))
    atheris.Fuzz()


def mutated_picture(data: bytes, max_size: int, seed: int) -> bytes:
    """Bytes changed anywhere; in a PNG the checksums are put right, or nothing behind them would be reached."""
    import atheris

    data = atheris.Mutate(data, max_size)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    whole, at = bytearray(data), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = zlib.crc32(whole[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(whole)


def mutated_json(data: bytes, max_size: int, seed: int) -> bytes:
    """One value replaced, or bytes changed anywhere."""
    import atheris

    chance = random.Random(seed)
    try:
        places = list(_places(json.loads(data)))
    except (ValueError, RecursionError):
        places = []
    if not places or chance.random() < 0.5:
        return atheris.Mutate(data, max_size)
    record, holder, key = chance.choice(places)
    holder[key] = chance.choice(HOSTILE)
    return json.dumps(record).encode()[:max_size]


def _places(record: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The record, and every holder and key of a value in it."""
    left = [record]
    while left:
        holder = left.pop()
        if isinstance(holder, (dict, list)):
            for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
                yield record, holder, key
                left.append(holder[key])


if __name__ == "__main__":
    sys.exit(main())
