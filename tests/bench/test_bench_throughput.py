from __future__ import annotations

from pathlib import Path

import pytest
from fake_variants import FAKE_WORKER, variant

from edgecls.bench.throughput import BATCHES, measure_throughput, thread_counts, throughput_steps


@pytest.mark.parametrize(
    ("threads", "counts"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (9, (1, 2, 4, 8, 9))]
)
def test_threads_are_doubled_up_to_the_last(threads: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(threads) == counts


def test_every_batch_is_measured_with_every_number_of_threads(tmp_path: Path) -> None:
    pinned, steps = [], []

    def pick(threads: int) -> None:
        pinned.append(threads)

    good, refused, small = measure_throughput(
        [variant(tmp_path, "good"), variant(tmp_path, "bad", "refused"), variant(tmp_path, "small", "batch1")],
        seconds=0.06,
        threads=2,
        pick_cpus=pick,
        advance=steps.append,
        command=FAKE_WORKER,
    )
    assert pinned == [1, 2]
    assert len(steps) == throughput_steps(2) == 6
    assert [(cell.threads, cell.batch) for cell in good.cells] == [(t, b) for t in (1, 2) for b in BATCHES]
    assert all(cell.images >= 3 * cell.batch and cell.images_per_s > 0 for cell in good.cells)
    assert all(cell.images % cell.batch == 0 for cell in good.cells)
    assert good.error is None
    assert good.best == max(good.cells, key=lambda cell: cell.images_per_s)
    assert (refused.cells, refused.best) == ((), None)
    assert "the engine refuses this bundle" in str(refused.error)
    assert [(cell.threads, cell.batch) for cell in small.cells] == [(1, 1)]
    assert "takes one picture at a time" in str(small.error)
