import dataclasses

import pytest

from edgecls.export import agreement
from edgecls.export.agreement import Agreement, compare_with_float
from edgecls.export.job import export_bundle
from edgecls.export.pack import assemble
from edgecls.export.targets import target_module
from edgecls.export.trace import Trace, probe_pictures
from edgecls.runtime import ImageSet


def test_a_good_graph_agrees_and_a_broken_one_is_told(small):
    opened, graph, plan = small
    crops = probe_pictures(32, 8)
    good = target_module("onnxruntime").compile_artifact(graph, "int8", plan, "x86-vnni")
    manifest, _ = assemble(opened, graph, "onnxruntime", "int8", good, None)
    assert compare_with_float(graph, manifest, good, [crops[:3], crops[3:]]).n == 8

    class Reversed:
        """Ranks the classes the other way round."""

        engine = agreement.answering_engine(manifest, good)

        def infer(self, images):
            return -self.engine.infer(images)

        def close(self):
            self.engine.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "answering_engine", lambda manifest, artifact: Reversed())
        assert compare_with_float(graph, manifest, good, [crops]) == Agreement(8, 0)


@pytest.mark.parametrize(("same", "damaged"), [(32, False), (24, False), (23, True), (0, True)])
def test_the_note_warns_of_damage(same, damaged):
    note = Agreement(32, same).note
    assert f"{same} of 32 calibration pictures" in note
    assert ("damaged" in note) == damaged


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_an_int8_export_from_pictures_says_how_well_it_agrees(small, tmp_path, pictures, target):
    opened, graph, _ = small
    result = export_bundle(
        dataclasses.replace(opened),
        target=target,
        precision="int8",
        output=tmp_path / "x.edgecls",
        calibration=ImageSet.from_folder(pictures),
        calibration_size=20,
        traced=Trace(graph, 0.0),
    )
    assert any("of 20 calibration pictures" in note for note in result.notes)
