import dataclasses
import os
from contextlib import closing
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgecls.calibration.quantization import Quantization
from edgecls.export import trials as trials_module
from edgecls.export.job import export_bundle
from edgecls.export.quantize import _Maker
from edgecls.export.targets import ANY_GPU, target_module
from edgecls.export.trace import Trace
from edgecls.export.trials import Trial, Trials
from edgecls.runtime import ImageSet
from edgecls.runtime.cpu import cpu_isa
from edgecls.runtime.progress import SilentProgress


@pytest.fixture
def opened_trials(small, pictures, tmp_path):
    """Opens trials of the small network on a target, over the 24 pictures."""
    opened, graph, _ = small

    def make(target="onnxruntime", memory=None, labelled=True):
        images = ImageSet.from_folder(pictures)
        images = images.labelled(opened.labels) if labelled else images
        return Trials(opened, graph, target=target, isa="x86-vnni", gpu=ANY_GPU, pictures=images, memory=memory)

    return make


def trial(**changes):
    return Trial(**{"n": 32, "right": 20, "b": 1, "c": 2, "flips": 3, "kl": 0.1, "ratio": None, "ms": None, **changes})


def test_a_good_plan_hardly_leaves_the_float_graph(small, opened_trials):
    with closing(opened_trials()) as trials:
        done = trials.run(small[2])
    assert done.n == 24
    assert 0 < done.kl < 0.05
    assert done.flips <= 3
    assert abs(done.b - done.c) <= done.flips
    assert done.ratio is None or done.ratio > 0


def test_without_classes_the_float_graph_is_the_truth(small, opened_trials):
    with closing(opened_trials(labelled=False)) as trials:
        done = trials.run(small[2])
    assert (done.b, done.c) == (done.flips, 0)


def test_an_engine_that_ranks_the_other_way_round_is_seen(small, opened_trials, monkeypatch):
    with closing(opened_trials()) as trials:
        artifact, manifest, _ = trials.compile(small[2])
        engine = trials_module.answering_engine(manifest, artifact)

        class Reversed:
            def infer(self, images):
                return -engine.infer(images)

            def close(self):
                engine.close()

        monkeypatch.setattr(trials_module, "answering_engine", lambda manifest, artifact: Reversed())
        assert trials.look(artifact, manifest).flips == 24


def test_a_killed_run_goes_on_from_what_it_remembers(small, opened_trials, tmp_path, monkeypatch):
    memory = tmp_path / "trials"
    with closing(opened_trials(memory=memory)) as trials:
        first = trials.run(small[2])
    memory.write_bytes(memory.read_bytes() + b'["half a li')
    with closing(opened_trials(memory=memory)) as trials:
        monkeypatch.setattr(trials, "look", lambda *_: pytest.fail("tried again"))
        assert trials.run(small[2]) == first
    with closing(opened_trials(target="openvino", memory=memory)) as trials:
        assert trials.run(small[2]).kl != first.kl


def test_what_follows_a_torn_line_is_remembered(small, opened_trials, tmp_path, monkeypatch):
    memory = tmp_path / "trials"
    memory.write_bytes(b'["half a li')
    with closing(opened_trials(memory=memory)) as trials:
        first = trials.run(small[2])
    with closing(opened_trials(memory=memory)) as trials:
        monkeypatch.setattr(trials, "look", lambda *_: pytest.fail("tried again"))
        assert trials.run(small[2]) == first


def test_other_preprocessing_is_tried_anew(small, opened_trials, tmp_path, pictures):
    memory = tmp_path / "trials"
    with closing(opened_trials(memory=memory)) as trials:
        first = trials.run(small[2])
    opened = dataclasses.replace(small[0], preprocess=msgspec.structs.replace(small[0].preprocess, resize_px=60))
    again = Trials(
        opened, small[1], target="onnxruntime", isa="x86-vnni", gpu=ANY_GPU, memory=memory,
        pictures=ImageSet.from_folder(pictures).labelled(opened.labels),
    )  # fmt: skip
    with closing(again) as trials:
        assert trials.run(small[2]).kl != first.kl


@pytest.mark.skipif(cpu_isa() != "x86-vnni", reason="here its graphs are not timed")
def test_a_pace_on_other_cpus_is_measured_anew(small, opened_trials, tmp_path, pictures, monkeypatch):
    memory, images, looks = tmp_path / "trials", ImageSet.from_folder(pictures), []
    monkeypatch.setattr(Trials, "look", lambda *_: looks.append(1) or trial(ratio=0.5, ms=1.0))
    for cpus, expected in (({0, 1}, 1), ({0, 1}, 1), ({0}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus, raising=False)
        with closing(opened_trials(memory=memory)) as trials:
            trials.run(small[2])
            assert len(looks) == expected
            trials.answers(images, None)
        monkeypatch.setattr(Trials, "_answer", lambda *_: pytest.fail("answered again"))


def test_answers_of_a_killed_run_are_recalled_as_far_as_they_came(
    small, opened_trials, tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr(trials_module, "_PIECE", 10)
    memory, images, steps = tmp_path / "trials", ImageSet.from_folder(pictures), []

    def killed(count):
        steps.append(count)
        if sum(steps) > 12:
            raise KeyboardInterrupt

    with closing(opened_trials(memory=memory)) as trials:
        expected = [trials.answers(images, plan).tolist() for plan in (small[2], None)]
    memory.unlink()
    for index, plan in enumerate((small[2], None)):
        steps.clear()
        with closing(opened_trials(memory=memory)) as trials, pytest.raises(KeyboardInterrupt):
            trials.answers(images, plan, killed)
        steps.clear()
        with closing(opened_trials(memory=memory)) as trials:
            assert trials.answers(images, plan, steps.append).tolist() == expected[index]
        assert (steps[0], sum(steps)) == (10, 24)
    with closing(opened_trials(memory=memory)) as trials:
        monkeypatch.setattr(trials, "compile", lambda plan: pytest.fail("compiled again"))
        monkeypatch.setattr(trials._float, "infer", lambda pixels: pytest.fail("answered again"))
        assert [trials.answers(images, plan).tolist() for plan in (small[2], None)] == expected


def test_answers_to_other_pictures_come_in_their_order(small, opened_trials, pictures, monkeypatch):
    images = ImageSet.from_folder(pictures)
    classes = [int(small[0].preprocess.pixels(pictures / image.path).sum()) % 7 for image in images.images]
    assert len(set(classes)) > 3

    class Sums:
        """Answers with a class that depends on every pixel."""

        def infer(self, crops):
            return np.eye(7, dtype=np.float32)[[int(crop.sum()) % 7 for crop in crops]]

        def close(self):
            pass

    with closing(opened_trials()) as trials:
        assert (trials.answers(images, small[2]) == trials.answers(images, None)).mean() > 0.8
    with closing(opened_trials()) as trials:
        trials.close()
        monkeypatch.setattr(trials, "_float", Sums())
        assert trials.answers(images, None).tolist() == classes


def test_where_another_engine_answers_no_time_is_told(small, opened_trials):
    with closing(opened_trials(target="tensorrt")) as trials:
        done = trials.run(small[2])
    assert (done.ratio, done.ms) == (None, None)


@pytest.mark.parametrize(("after", "kept"), [(0.89, True), (0.91, False), (2.0, False)])
def test_a_correction_stays_only_where_it_clearly_helps(after, kept):
    maker = object.__new__(_Maker)
    maker.notes, maker.judge = [], [np.zeros((4, 1))]
    maker.divergence = {"plain": 1.0, "corrected": after}.__getitem__
    assert maker.better("bias-correction", "plain", "corrected") == ("corrected" if kept else "plain")
    assert ("left out" in maker.notes[0]) != kept


def test_no_picture_judges_what_it_has_taught(small, pictures):
    opened, graph, plan = small
    drawn, rules = ImageSet.from_folder(pictures), target_module("onnxruntime").rules("x86-vnni")
    maker = _Maker(graph, rules, drawn, opened.preprocess, plan.calibration, Quantization(), 1, SilentProgress())
    learned, judging = ({crop.tobytes() for crop in np.concatenate(part)} for part in (maker.learn, maker.judge))
    assert len(learned) == 12
    assert len(judging) == 12
    assert not learned & judging
    assert {crop.tobytes() for crop in np.concatenate(maker.look)} <= learned


class Takes:
    """An engine that takes a time on a clock."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def infer(self, images):
        self.clock[0] += self.seconds
        return np.zeros((1, 7), np.float32)

    def close(self):
        pass


def test_the_pace_is_of_integers_over_floats(opened_trials, monkeypatch):
    with closing(opened_trials()) as trials:
        trials.close()
        clock = [0.0]
        monkeypatch.setattr(trials_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        monkeypatch.setattr(trials, "_float", Takes(clock, 2.0))
        assert trials._pace(Takes(clock, 1.0), [trials._pixels[:1]]) == (0.5, 1000.0)


@pytest.mark.parametrize(("flips", "damaged"), [(0, False), (8, False), (9, True), (32, True)])
def test_the_notes_warn_of_damage(flips, damaged):
    note, _ = trial(flips=flips).notes()
    assert f"{32 - flips} of 32 calibration pictures" in note
    assert ("damaged" in note) == damaged


@pytest.mark.parametrize(("ratio", "worth"), [(0.5, True), (0.99, True), (1.0, False), (1.4, False)])
def test_the_notes_say_whether_integers_are_worth_it(ratio, worth):
    _, note = trial(ratio=ratio, ms=1.0).notes()
    assert f"{ratio:.2f} of fp32's time" in note
    assert ("ship fp32" in note) != worth


def test_the_notes_say_that_nothing_was_timed():
    assert "INT8 was not timed" in trial(ratio=None).notes()[1]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_an_int8_export_from_pictures_says_how_well_it_agrees(small, tmp_path, pictures, target):
    opened, graph, _ = small
    result = export_bundle(
        opened,
        target=target,
        precision="int8",
        output=tmp_path / "x.edgecls",
        calibration=ImageSet.from_folder(pictures),
        calibration_size=20,
        quantization=Quantization(ranges="mse"),
        traced=Trace(graph, 0.0),
    )
    assert any("of 20 calibration pictures" in note for note in result.notes)
    assert any(note.startswith("bias-correction: KL divergence") for note in result.notes)


def test_corrections_can_be_switched_off(small, tmp_path, pictures):
    opened, graph, _ = small
    result = export_bundle(
        opened,
        target="onnxruntime",
        precision="int8",
        output=tmp_path / "x.edgecls",
        calibration=ImageSet.from_folder(pictures),
        quantization=Quantization(without=frozenset({"bias-correction"})),
        traced=Trace(graph, 0.0),
    )
    assert not any("bias-correction" in note for note in result.notes)
    assert msgspec.structs.asdict(result.manifest.provenance)["quantizer"] == "edgecls"
