"""The ladder climbs on made-up trials: what each block costs and gains is known, so is where it has to end."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
import onnx
import pytest
from networks import classifier
from PIL import Image
from torch import nn

from edgecls import cli
from edgecls.bench.gate_result import Margin
from edgecls.calibration.graph import Graph, is_activation
from edgecls.calibration.plan import QuantPlan
from edgecls.export import sensitivity
from edgecls.export.recover import Budget, recover, refuse_shared
from edgecls.export.sensitivity import REASON, blocks_of, with_floats, with_sensitivity
from edgecls.export.targets import ANY_GPU, target_module
from edgecls.export.trace import trace
from edgecls.export.trials import Trial
from edgecls.runtime import ImageSet, InputError, load
from edgecls.runtime.bundle import CalibrationRecord
from edgecls.runtime.imageset import ImageFile
from edgecls.runtime.progress import SilentProgress

PLAN = QuantPlan(
    graph_sha256="0" * 64,
    calibration=CalibrationRecord(sha256="0" * 64, seed=0, images=("a" * 64,)),
    ranges="mse",
    tensors={},
    weights={"rest": (1.0,)},
    float_nodes={},
)
N = 5000
TARGETS = ("onnxruntime", "openvino", "tensorrt")


def images(count=N, first="b"):
    made = (ImageFile(f"{i % 10}/{i}.png", f"{first}{i:063x}", str(i % 10), i % 10) for i in range(count))
    return ImageSet("/nowhere", tuple(made))


@dataclass
class Fake:
    """Blocks cost `lost` pictures of 1,000 while they are in integers and `cost` of the time in float."""

    lost: dict[str, int]
    cost: float = 0.05
    seen: list[frozenset[str]] = field(default_factory=list)
    judged: list[frozenset[str]] = field(default_factory=list)
    always_float: frozenset[str] = frozenset()

    def wrong(self, plan):
        return sum(lost for block, lost in self.lost.items() if f"{block}.conv" not in plan.float_nodes)

    def integers(self, plan):
        return frozenset(plan.weights.keys() - self.always_float)

    def run(self, plan):
        self.seen.append(frozenset(plan.float_nodes))
        wrong = self.wrong(plan)
        ratio = 0.5 + self.cost * len(plan.float_nodes)
        return Trial(n=1000, right=1000, b=wrong, c=0, flips=wrong, kl=wrong / 1000, ratio=ratio, ms=ratio * 10)

    def answers(self, pictures, plan, advance):
        advance(len(pictures))
        truth = np.array([image.label for image in pictures.images])
        if plan is None:
            return truth
        self.judged.append(frozenset(plan.float_nodes))
        after = truth.copy()
        after[: self.wrong(plan) * len(truth) // 1000] += 1
        return after


@pytest.fixture
def climb(monkeypatch):
    def run(trials, max_drop, unit="pp", plan=PLAN):
        monkeypatch.setattr(
            "edgecls.export.sensitivity.blocks_of", lambda graph: {name: [f"{name}.conv"] for name in trials.lost}
        )
        return recover(None, plan, trials, "onnxruntime", Budget(Margin(max_drop, unit), images()), SilentProgress())

    return run


def test_a_plan_within_the_budget_stays_as_it_is(climb):
    trials = Fake({"a": 1, "b": 1})
    done = climb(trials, 1.0)
    assert done.certificate.verdict == "pass"
    assert done.floats == ()
    assert done.plan == PLAN
    assert len(trials.judged) == 1
    assert trials.judged[0] == frozenset()


def test_a_look_is_judged_at_a_third_of_the_level(monkeypatch):
    """4 of 1,000 lost are below 1 pp at 5 %, and are not shown to be at a third of that."""
    monkeypatch.setattr("edgecls.export.sensitivity.blocks_of", lambda graph: {"a": ["a.conv"]})
    trials = Fake({"a": 4})
    recover(None, PLAN, trials, "onnxruntime", Budget(Margin(1.0), images(1000)), SilentProgress())
    assert len(trials.judged) == 2


def test_a_look_counts_its_pictures():
    told = []

    class Listener(SilentProgress):
        @contextmanager
        def stage(self, title, total=None):
            told.append([title, total, 0])

            def advance(steps):
                told[-1][2] += steps

            yield advance

    recover(None, PLAN, Fake({"a": 1}), "onnxruntime", Budget(Margin(1.0), images()), Listener())
    assert told == [["Judging with 0 blocks in float", 2 * N, 2 * N]]


def test_a_relative_budget_is_a_share_of_what_the_float_graph_gets_right(climb):
    trials = Fake({"bad": 30})
    assert climb(trials, 4.0, "%rel").floats == ()  # its accuracy is 1
    assert climb(trials, 2.0, "%rel").floats == ("bad",)


def test_the_guilty_blocks_and_no_others_stay_in_float(climb):
    trials = Fake({"a": 1, "bad": 30, "b": 1, "worse": 60, "c": 0})
    done = climb(trials, 1.0)
    assert done.certificate.verdict == "pass"
    assert set(done.floats) == {"bad", "worse"}
    assert done.plan.float_nodes == {"bad.conv": REASON, "worse.conv": REASON}
    assert done.certificate.upper_pp < 1.0
    assert done.certificate.drop_pp == pytest.approx(0.2)
    assert done.certificate.alpha == pytest.approx(0.05 / 3)
    assert {block.name: block.flips for block in done.plan.sensitivity.blocks}["worse"] == 60


def test_what_is_no_longer_needed_is_quantized_again(climb):
    # By gain a price the small one comes first, but the large one alone is enough.
    trials = Fake({"small": 9, "large": 40})
    trials_run = trials.run

    def run(plan):
        made = trials_run(plan)
        extra = 0.3 if "large.conv" in plan.float_nodes else 0.0
        return msgspec.structs.replace(made, ratio=made.ratio + extra)

    trials.run = run
    done = climb(trials, 1.5)
    assert done.floats == ("large",)


def test_an_impossible_budget_ends_with_the_best_plan_and_the_pareto_list(climb):
    trials = Fake({"a": 20, "b": 20, "c": 20}, cost=0.1)
    trials.wrong = lambda plan: 40 + 5 * (3 - len(plan.float_nodes))
    done = climb(trials, 1.0)
    assert done.certificate.verdict == "fail"
    assert set(done.floats) == {"a", "b", "c"}
    assert done.pareto[0].floats == ()
    drops = [rung.drop_pp for rung in done.pareto]
    assert drops == sorted(drops, reverse=True)
    ratios = [rung.ratio for rung in done.pareto]
    assert ratios == sorted(ratios)
    assert len(trials.judged) <= 3
    document = msgspec.json.decode(done.to_json())
    assert document["certificate"]["verdict"] == "fail"
    assert len(document["pareto"]) == len(done.pareto)


IMPOSSIBLE = """
import torch

def make():
    \"\"\"Channels of very different sizes, and weights that make up for it: one grid for all of them is ruin.\"\"\"
    torch.manual_seed(0)
    conv, linear = torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.Linear(256, 7)
    size = torch.logspace(-2, 2, 16)
    with torch.no_grad():
        conv.weight *= size[:, None, None, None]
        conv.bias *= size
        linear.weight *= 8 / size.repeat_interleave(16)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), linear).eval()
"""


def test_an_impossible_budget_ends_an_export_with_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(IMPOSSIBLE)
    (tmp_path / "labels.txt").write_text("".join(f"class {index}\n" for index in range(7)))
    net = "export net.py:make --target onnxruntime --labels labels.txt --resize 36 --crop 32 --quiet"
    net += " --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    assert cli.main(f"{net} -o float.edgecls".split()) == 0
    rng = np.random.default_rng(5)
    with load("float.edgecls", threads=1) as session:  # which is always right
        for index in range(130):
            picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 44))
            best = session.logits(session.preprocess.pixels(picture)[None]).argmax()
            folder = tmp_path / ("eval" if index < 100 else "calibration") / f"class {best}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index}.png")
    net += " --int8 --calibration calibration --weights per-tensor --ranges minmax"
    net += " --without equalization --without bias-correction"
    assert cli.main(f"{net} --max-drop 0.1pp --eval eval -o net.edgecls".split()) == 1
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith((".", "net."))} == {
        "net.py", "net.over-budget.edgecls", "net.over-budget.recovery.json"
    }  # fmt: skip
    recovery = msgspec.json.decode((tmp_path / "net.over-budget.recovery.json").read_bytes())
    assert recovery["certificate"]["verdict"] == "fail"
    assert recovery["certificate"]["drop_pp"] > 5
    assert recovery["pareto"]
    for rung in recovery["pareto"]:
        assert rung["drop_pp"] > 0
        assert len(rung["floats"]) < 2  # of two blocks
        assert {"ms", "ratio"} <= set(rung)
    with load("net.over-budget.edgecls", threads=1) as session:
        assert session.logits(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 7)


def test_the_float_graph_is_no_int8(climb):
    """Where every block is needed in float, that is not certified as INT8."""
    trials = Fake({"a": 20, "b": 20})
    plan = msgspec.structs.replace(PLAN, weights={"a.conv": (1.0,), "b.conv": (1.0,)})
    done = climb(trials, 1.0, plan=plan)
    assert done.certificate.verdict == "fail"
    assert [len(floats) for floats in trials.judged] == [0, 1]


def test_what_the_target_leaves_in_float_anyway_makes_no_int8(climb):
    trials = Fake({"a": 20, "b": 20, "se": 0}, always_float=frozenset({"se.conv"}))
    plan = msgspec.structs.replace(PLAN, weights={"a.conv": (1.0,), "b.conv": (1.0,), "se.conv": (1.0,)})
    assert climb(trials, 1.0, plan=plan).certificate.verdict == "fail"
    assert frozenset({"a.conv", "b.conv"}) not in trials.judged


def test_one_weight_at_least_stays_integer_whatever_the_worst_bargain_is(climb):
    """Here it is a block that the target leaves in float anyway: without it, all weights would still be float."""
    trials = Fake({"a": 20, "b": 20, "se": 1}, always_float=frozenset({"se.conv"}))
    plan = msgspec.structs.replace(PLAN, weights={"a.conv": (1.0,), "b.conv": (1.0,), "se.conv": (1.0,)})
    assert climb(trials, 1.0, plan=plan).certificate.verdict == "fail"
    assert all(not {"a.conv", "b.conv"} <= floats for floats in trials.judged)


def test_the_sensitivity_is_kept_where_the_plan_as_it_is_comes_nearest(climb):
    done = climb(Fake({"a": 20, "b": 20}, cost=0.4), 0.5)
    assert done.floats == ()
    assert {block.name for block in done.plan.sensitivity.blocks} == {"a", "b"}


def test_chance_in_the_times_does_not_decide_between_blocks(climb):
    """Trials tell 3 % apart: the small block's time was 1 % less by chance, the large one's 2 % more."""
    trials = Fake({"small": 9, "large": 40}, cost=0)
    trials_run = trials.run

    def run(plan):
        made = trials_run(plan)
        chance = 0.02 * ("large.conv" in plan.float_nodes) - 0.01 * ("small.conv" in plan.float_nodes)
        return msgspec.structs.replace(made, ratio=made.ratio + chance)

    trials.run = run
    climb(trials, 2.0)
    assert trials.judged[1] == frozenset({"large.conv"})
    assert frozenset({"small.conv", "large.conv"}) not in trials.seen


def test_it_stops_where_integers_are_no_longer_faster(climb):
    trials = Fake({"a": 20, "b": 20, "c": 20}, cost=0.4)
    done = climb(trials, 0.5)
    assert done.certificate.verdict == "fail"
    assert any("ship the float graph" in note for note in done.notes)
    assert trials.judged == [frozenset()]


def test_pictures_that_the_network_was_trained_on_are_not_believed(climb):
    """They show a tenth of the drop and promise too much; the truth is learned from each failed look."""
    trials = Fake({f"b{i}": 4 for i in range(20)}, cost=0.01)
    trials_run = trials.run

    def run(plan):
        made = trials_run(plan)
        return msgspec.structs.replace(made, b=made.b // 10)

    trials.run = run
    done = climb(trials, 1.0)
    assert done.certificate.verdict == "pass"
    assert done.certificate.alpha == pytest.approx(0.05 / 3)
    looks = [len(floats) for floats in trials.judged]
    assert looks[0] == 0
    assert len(looks) <= 3
    assert looks == sorted(set(looks))


def test_the_last_look_keeps_at_least_twice_as_many_blocks(climb):
    """However rosy the choosing pictures are: these show no drop at all."""
    trials = Fake({f"b{i}": 4 for i in range(8)}, cost=0.01)
    trials_run = trials.run
    trials.run = lambda plan: msgspec.structs.replace(trials_run(plan), b=0)
    climb(trials, 1.0)
    assert [len(floats) for floats in trials.judged] == [0, 1, 2]


def test_where_twice_as_many_blocks_are_too_slow_the_last_look_takes_those_that_should_do(climb):
    trials = Fake({f"b{i}": 8 for i in range(8)}, cost=0.07)
    trials_run = trials.run

    def run(plan):  # the first look shows nothing of it, the second half
        made = trials_run(plan)
        return msgspec.structs.replace(made, b=made.b * 3 // 10)

    trials.run = run
    done = climb(trials, 1.5)
    assert done.certificate.verdict == "pass"
    assert [len(floats) for floats in trials.judged][-1] <= 7
    assert not done.notes


def test_too_few_pictures_are_inconclusive(climb, monkeypatch):
    trials = Fake({"a": 0, "b": 8})
    monkeypatch.setattr("edgecls.export.sensitivity.blocks_of", lambda graph: {"a": ["a.conv"], "b": ["b.conv"]})
    trials.cost = 1.0
    done = recover(None, PLAN, trials, "x", Budget(Margin(1.0), images(200)), SilentProgress())
    assert done.certificate.verdict == "inconclusive"
    assert done.certificate.images_needed > 200


def test_pictures_that_shaped_the_plan_are_refused():
    with pytest.raises(InputError, match="2 of the 5 pictures of --eval are in the calibration folder"):
        refuse_shared(Budget(Margin(1.0), images(5)), images(3, first="c"), images(2))
    with pytest.raises(InputError, match="1 of the 5"):
        refuse_shared(Budget(Margin(1.0), images(5)), images(1), images(3, first="c"))
    flat = ImageSet("/nowhere", (ImageFile("1.png", "d" * 64, None, None),))
    with pytest.raises(InputError, match="no class folders"):
        refuse_shared(Budget(Margin(1.0), flat), images(3, first="d"), images(3, first="c"))


def test_blocks_are_modules_of_a_few_weighted_operations(small, monkeypatch):
    monkeypatch.setattr(sensitivity, "_FEWEST", 5)
    _, graph, plan = small
    blocks = blocks_of(graph)
    assert {"stem", "head", "fc"} <= set(blocks)
    assert {name for name in blocks if name.startswith("blocks.")} == {"blocks.0", "blocks.1"}
    nodes = [name for names in blocks.values() for name in names]
    assert len(nodes) == len(set(nodes))
    assert "fc" in with_floats(plan, blocks["fc"]).float_nodes


def test_a_network_of_a_few_modules_has_smaller_blocks(small):
    """With `blocks.0` whole there would be five."""
    held = {name for name in blocks_of(small[1]) if name.startswith("blocks.0")}
    assert {"blocks.0.body.0", "blocks.0.body.3", "blocks.0.body.6", "blocks.0.body.7"} <= held


def test_convolutions_of_one_module_are_blocks_of_their_own():
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)), nn.Flatten(), nn.Linear(192, 7))
    blocks = blocks_of(trace(classifier(nn.Sequential(network).eval(), crop_px=8)).graph)
    assert [len(names) for names in blocks.values()] == [1] * 5


def test_every_operation_that_some_target_quantizes_is_in_a_block(small, monkeypatch):
    """Residual sums, gates and pools too: `blocks.0` is where torch says that they are."""
    monkeypatch.setattr(sensitivity, "_FEWEST", 5)
    _, graph, _ = small
    blocks, model = blocks_of(graph), graph.ir_model()
    kinds = frozenset().union(*(target_module(target).rules("x86-vnni", ANY_GPU).quantized for target in TARGETS))
    quantizable = {n.name for n in model.graph if n.op_type in kinds and is_activation(n.inputs[0])}
    held = {name for names in blocks.values() for name in names}
    assert quantizable - held == set()
    assert {"blocks.0.Add_0", "blocks.0.body.6.Mul_0", "blocks.0.body.6.pool.GlobalAveragePool_0"} <= {
        *blocks["blocks.0"]
    }
    assert "GlobalAveragePool_0" in blocks["head"]


def test_without_names_of_modules_an_operation_belongs_to_the_weight_before_it():
    """An attention and a residual sum as a file without torch's metadata has them."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, 2] image) => (float[n, 2, 2] logits) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}>
        {
            [early] e = Add(image, image)
            [qkv] q = MatMul(e, w)
            [bias] s = Add(q, b)
            [turned] t = Transpose<perm = [0, 2, 1]>(s)
            [scores] a = MatMul(s, t)
            [share] p = Softmax(a)
            [values] v = MatMul(p, s)
            [proj] o = MatMul(v, w)
            [sum] r = Add(e, o)
            logits = Identity(r)
        }"""
    )
    assert blocks_of(Graph(onnx.shape_inference.infer_shapes(model).SerializeToString())) == {
        "early": ["early"],
        "qkv": ["qkv", "scores", "values"],
        "proj": ["proj", "sum"],
    }


def test_sensitivity_is_measured_block_by_block():
    trials = Fake({"a": 1, "bad": 30})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecls.export.sensitivity.blocks_of", lambda graph: {n: [f"{n}.conv"] for n in trials.lost})
        plan = with_sensitivity(None, PLAN, trials, "openvino", SilentProgress())
    measured = plan.sensitivity
    assert (measured.target, measured.n, measured.flips) == ("openvino", 1000, 31)
    bad = measured.blocks[1]
    assert (bad.name, bad.nodes, bad.flips) == ("bad", ("bad.conv",), 30)
    assert bad.kl == pytest.approx(0.03)
    assert bad.cost == pytest.approx(0.05)
