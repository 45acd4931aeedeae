"""Real bundles, the real engine and real processes."""

from __future__ import annotations

from pathlib import Path

import bundles
import onnx.parser
import pytest

from edgecls.bench.gate import judge
from edgecls.bench.gate_result import Limits, Margin
from edgecls.bench.measure import measure
from edgecls.bench.report import Profile, read_report

PROFILE = Profile(name="smoke", launches=2, timed_s=0.2, slice_s=0.1, warm_up_s=0.05, settle_s=0.2, stages_s=0.05)
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
net (uint8[n, 16, 16, 3] image) => (float[n, 3] logits)
<int64[2] axes = {{1, 2}}, float scale = {{{scale}}}>
{{
    values = Cast <to = 1> (image)
    means = ReduceMean <keepdims = 0> (values, axes)
    logits = Mul (means, scale)
}}
"""


def write_bundle(path: Path, scale: float) -> Path:
    """A classifier whose answer is the brightest channel."""
    model = onnx.parser.parse_model(GRAPH.format(scale=scale)).SerializeToString()
    return bundles.write_bundle(path, model, 16)


def test_two_real_bundles_are_measured_and_judged(tmp_path: Path, picture_folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    reference = write_bundle(tmp_path / "full.edgecls", 0.1)
    candidate = write_bundle(tmp_path / "damped.edgecls", 0.09)
    output = tmp_path / "report.json"
    report = measure(
        [candidate],
        picture_folder,
        reference=reference,
        profile=PROFILE,
        threads=1,
        throughput=True,
        output=output,
    )
    assert report.reasons == ()
    assert [run.reasons for run in report.runs] == [(), ()]
    assert report.valid
    assert read_report(output) == report
    run = report.runs[0]
    assert run.engine.name == "onnxruntime"
    assert run.accuracy is not None
    assert (run.accuracy.n, run.accuracy.top1, run.accuracy.drop_pp) == (30, 1.0, 0.0)
    assert run.accuracy.kl_mean is not None
    assert run.accuracy.kl_mean > 0
    assert run.latency is not None
    assert run.latency.ratio is not None
    assert run.latency.stages is not None
    assert run.coldstart is not None
    assert run.coldstart.load_ms > 0
    assert run.throughput is not None
    assert [(cell.threads, cell.batch) for cell in run.throughput.cells] == [(1, 1), (1, 8), (1, 32)]
    assert (run.energy is None) == (run.energy_unavailable is not None)
    result = judge(report, Limits(max_drop=Margin(1.0)))
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert "about 268 pictures would be needed" in result.runs[0].messages[0]
