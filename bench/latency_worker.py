"""The process that is timed: `python -m edgecls.bench.latency_worker` loads one bundle and times it on command.

Commands are JSON objects, one a line on standard input: `{"do": NAME, ...arguments}`; each is answered by one line on
standard output, `{"error": ...}` for an expected error. Only the standard library is imported at the top, so that the
first line tells when the bare process is up and `load` can time the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgecls.runtime.session import Session

LEAD_IN_S = 0.02
"""Untimed start of every slice: another process had the caches, and its idle threads may still be spinning."""
WARM_UP_INFERENCES = 10
_SETTLED = 0.03
"""Medians of two consecutive blocks of the warm-up that differ by less have settled."""
_BLOCK_S = 0.25

_now = time.perf_counter_ns


class Worker:
    """Holds the session between commands. Its public methods are the commands."""

    _session: Session
    _crops: NDArray[np.uint8]
    _next = 0

    def load(self, bundle: str, threads: int, cpus: list[int] | None, crops: str) -> dict[str, Any]:
        """Imports the runtime, opens the bundle and makes the first inference, each timed.

        Args:
            bundle: Path of the bundle.
            threads: Threads of one inference.
            cpus: CPUs to pin this process to, or None.
            crops: Path of a `.npy` file, `uint8 [crops, crop, crop, 3]`.
        """
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        start = _now()
        import edgecls.runtime as runtime

        imported = _now()
        self._session = runtime.load(bundle, threads=threads)
        loaded = _now()
        import numpy as np

        self._crops = np.load(crops, allow_pickle=False)
        return {
            "sha256": self._session.bundle.sha256,
            "import_ms": (imported - start) / 1e6,
            "load_ms": (loaded - imported) / 1e6,
            "first_inference_ms": self._infer() / 1e6,
            "provider_requested": self._session.engine_info.provider_requested,
            "provider_used": self._session.engine_info.provider_used,
        }

    def warm_up(self, least_s: float, most_s: float) -> dict[str, Any]:
        """Runs until the medians of consecutive blocks settle, at least 10 inferences and `least_s` seconds."""
        start = _now()
        inferences, previous, settled = 0, 0, False
        while not (settled and inferences >= WARM_UP_INFERENCES and _now() - start >= least_s * 1e9):
            if _now() - start >= most_s * 1e9 and inferences >= WARM_UP_INFERENCES:
                break
            block = self._run(_BLOCK_S)
            inferences += len(block)
            median = sorted(block)[len(block) // 2]
            settled = abs(median - previous) < _SETTLED * median
            previous = median
        return {"seconds": (_now() - start) / 1e9, "settled": settled}

    def time_slice(self, seconds: float) -> dict[str, Any]:
        """Samples of about `seconds` of inferences of batch 1, at least one, nanoseconds each."""
        self._run(LEAD_IN_S)
        return {"samples_ns": self._run(seconds)}

    def time_stages(self, seconds: float, pictures: list[str]) -> dict[str, Any]:
        """Times decode, preprocess, model and top-k of picture files, each picture at least once, nanoseconds."""
        contents = []
        for path in pictures:
            with open(path, "rb") as file:
                contents.append(file.read())
        session, start = self._session, _now()
        samples: list[list[int]] = []
        while not samples or _now() - start < seconds * 1e9:
            for content in contents:
                began = _now()
                image = session.preprocess.decoded(content)
                decoded = _now()
                crop = session.preprocess.cropped(*image)
                prepared = _now()
                logits = session.logits(crop)
                inferred = _now()
                session.rank(logits[0], 5)
                samples.append([decoded - began, prepared - decoded, inferred - prepared, _now() - inferred])
        return {"samples_ns": samples}

    def run(self, seconds: float, batch: int) -> dict[str, Any]:
        """Infers batches for about `seconds`, after one that does not count; no single inference is timed."""
        import numpy as np

        images = np.resize(self._crops, (batch, *self._crops.shape[1:]))
        self._session.logits(images)
        done, start = 0, _now()
        while not done or _now() - start < seconds * 1e9:
            self._session.logits(images)
            done += batch
        return {"images": done, "seconds": (_now() - start) / 1e9}

    def peak_memory(self) -> dict[str, Any]:
        """Peak resident memory of this process so far; None where the system does not tell."""
        return {"peak_rss_bytes": _peak_rss_bytes()}

    def _run(self, seconds: float) -> list[int]:
        samples: list[int] = []
        start = _now()
        while not samples or _now() - start < seconds * 1e9:
            samples.append(self._infer())
        return samples

    def _infer(self) -> int:
        crop = self._crops[self._next % len(self._crops)]
        self._next += 1
        start = _now()
        self._session.logits(crop)
        return _now() - start


def _peak_rss_bytes() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _claim_stdout() -> IO[str]:
    """Keeps standard output for answers: whatever an engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> int:
    """Answers commands until standard input ends."""
    answers = _claim_stdout()
    worker = Worker()
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        name: getattr(worker, name) for name in ("load", "warm_up", "time_slice", "time_stages", "run", "peak_memory")
    }
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        name = arguments.pop("do")
        try:
            answer = commands[name](**arguments)
        except Exception as error:
            # Only now, so that the import of the runtime is timed by `load`.
            from edgecls.runtime.errors import EdgeclsError

            if not isinstance(error, EdgeclsError):
                raise
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
