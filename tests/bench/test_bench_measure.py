from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_bundles import LABELS, FakeBundle, brightest, put
from numpy.typing import NDArray

from edgecls.bench.measure import measure
from edgecls.bench.report import read_report
from edgecls.report_table import report_table
from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess


def wrong_on_dark_ants(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    logits = brightest(crop)
    return logits[[1, 0, 2]] if logits[0] > logits[1] and logits[0] > logits[2] else logits


def test_accuracy_of_a_perfect_reference_and_a_candidate_that_loses_a_class(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    good = put(bundles, "fp32.edgecls")
    bad = put(bundles, "int8.edgecls", logits=wrong_on_dark_ants)
    output = tmp_path / "report.json"
    report = measure([good, bad], picture_folder, reference=good, latency=False, output=output)
    assert read_report(output) == report
    assert report.valid
    assert report.reference is not None
    assert report.reference.run == 0
    first, second = (run.accuracy for run in report.runs)
    assert [run.role for run in report.runs] == ["reference", "candidate"]
    assert [run.name for run in report.runs] == ["fp32", "int8"]
    assert first is not None
    assert (first.n, first.top1, first.top5, first.b, first.c, first.drop_pp) == (30, 1.0, None, 0, 0, 0.0)
    assert (first.ci95_pp, first.kl_mean, first.macro_f1) == ((0.0, 0.0), 0.0, 1.0)
    assert second is not None
    assert (second.b, second.c, second.flip_rate, second.top1_disagreement) == (10, 0, 1 / 3, 1 / 3)
    assert second.drop_pp == pytest.approx(100 / 3)
    assert second.top1 == pytest.approx(2 / 3)
    assert second.ci95_pp is not None
    assert second.upper95_one_sided_pp is not None
    assert second.ci95_pp[0] < 100 / 3 < second.upper95_one_sided_pp < second.ci95_pp[1]
    # ant: never found; bee: 10 right of 20 answers; cat: perfect
    assert second.macro_f1 == pytest.approx((0 + 20 / 30 + 1) / 3)
    assert second.per_class is not None
    assert [(row.label, row.n, row.correct, row.predicted) for row in second.per_class] == [
        ("ant", 10, 0, 0),
        ("bee", 10, 10, 20),
        ("cat", 10, 10, 10),
    ]
    assert second.kl_mean is not None
    assert second.kl_p99 is not None
    assert 0 < second.kl_mean < second.kl_p99
    assert report.runs[0].latency is None
    assert report.runs[0].artifact.int8_share == 0.25
    predictions = (tmp_path / second.predictions).read_bytes()
    assert report.predictions_sha256 == hashlib.sha256(predictions).hexdigest()
    assert report.samples_sha256 is None


def test_the_figures_behind_top1_stand_in_the_report(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    for number in range(2, 10):
        (picture_folder / f"ant/{number}.png").unlink()
    good, bad = put(bundles, "a.edgecls"), put(bundles, "b.edgecls", logits=wrong_on_dark_ants)
    report = measure([good, bad], picture_folder, latency=False, output=tmp_path / "report.json")
    first, second = (run.accuracy for run in report.runs)
    assert first is not None
    assert second is not None
    assert (first.top3, first.balanced_accuracy, first.macro_auc, first.auc_classes) == (1.0, 1.0, 1.0, 3)
    assert (first.warnings, first.unavailable) == ((), None)
    assert second.confusion == ((0, 2, 0), (0, 10, 0), (0, 0, 10))
    assert second.balanced_accuracy == pytest.approx(2 / 3)
    assert len(second.warnings) == 1
    assert "classes have 2 to 10 pictures" in second.warnings[0]
    lines = report_table(report).splitlines()
    assert lines[0].split("  ")[0:1] == ["variant"]
    assert "balanced" in lines[0]
    assert lines[3].split()[3:7] == ["90.91", "%", "66.67", "%"]


def test_many_classes_have_their_matrix_beside_the_report(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    labels = Labels((*LABELS.names, *(f"class {index}" for index in range(98))))
    wide = put(bundles, "a.edgecls", labels=labels, logits=lambda crop: np.pad(brightest(crop), (0, 98)))
    report = measure([wide], picture_folder, latency=False, output=tmp_path / "report.json")
    accuracy = report.runs[0].accuracy
    assert accuracy is not None
    assert accuracy.confusion is None
    with np.load(tmp_path / accuracy.predictions) as saved:
        assert saved["run0_confusion"].shape == (101, 101)
        assert np.diag(saved["run0_confusion"])[:4].tolist() == [10, 10, 10, 0]


def test_predictions_are_saved_beside_the_report(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    good, bad = put(bundles, "a.edgecls"), put(bundles, "b.edgecls", logits=wrong_on_dark_ants)
    (tmp_path / "report.samples.npz").write_bytes(b"of an earlier measurement")
    report = measure([good, bad], picture_folder, reference=good, latency=False, output=tmp_path / "report.json")
    assert not (tmp_path / "report.samples.npz").exists()
    assert report.runs[0].accuracy is not None
    with np.load(tmp_path / report.runs[0].accuracy.predictions, allow_pickle=False) as saved:
        assert saved["path"][0] == "ant/0.png"
        assert saved["label"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
        assert saved["run0_top"][:, 0].tolist() == saved["label"].tolist()
        assert saved["run1_top"][:10, 0].tolist() == [1] * 10
        assert saved["run0_kl"].tolist() == [0.0] * 30
        assert float(saved["run1_kl"].mean()) == report.runs[1].accuracy.kl_mean  # type: ignore[union-attr]
        assert set(saved["sha256"]) == {image.sha256 for image in ImageSet.from_folder(picture_folder).images}


def test_kl_is_that_of_the_reference_to_the_candidate(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    one = put(bundles, "p.edgecls", logits=lambda _: np.log(p).astype(np.float32) + 3)
    two = put(bundles, "q.edgecls", logits=lambda _: np.log(q).astype(np.float32) - 50)
    report = measure([one, two], picture_folder, reference=one, latency=False, output=tmp_path / "r.json")
    assert report.runs[1].accuracy is not None
    assert report.runs[1].accuracy.kl_mean == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-5)


def test_without_a_reference_nothing_is_paired(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    report = measure([put(bundles, "a.edgecls")], picture_folder, latency=False, output=tmp_path / "r.json")
    accuracy = report.runs[0].accuracy
    assert accuracy is not None
    assert (report.reference, accuracy.top1) == (None, 1.0)
    paired = (accuracy.b, accuracy.c, accuracy.drop_pp, accuracy.ci95_pp, accuracy.top1_disagreement, accuracy.kl_mean)
    assert paired == (None,) * 6


def test_without_labels_answers_are_still_compared(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    good, bad = put(bundles, "a.edgecls"), put(bundles, "b.edgecls", logits=wrong_on_dark_ants)
    report = measure([good, bad], picture_folder / "ant", reference=good, latency=False, output=tmp_path / "r.json")
    accuracy = report.runs[1].accuracy
    assert accuracy is not None
    assert (accuracy.top1, accuracy.b, accuracy.macro_f1, accuracy.per_class) == (None, None, None, None)
    assert accuracy.top1_disagreement == 1.0
    assert accuracy.kl_mean is not None
    assert not report.dataset.labelled


def test_duplicates_are_dropped_and_an_unlisted_reference_comes_last(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    one = put(bundles, "x/net.edgecls", sha256="1" * 64)
    copy = put(bundles, "copy.edgecls", sha256="1" * 64)
    namesake = put(bundles, "y/net.edgecls", sha256="2" * 64)
    reference = put(bundles, "fp32.edgecls")
    report = measure(
        [one, copy, namesake], picture_folder, reference=reference, latency=False, output=tmp_path / "r.json"
    )
    assert [run.name for run in report.runs] == ["net@11111111", "net@22222222", "fp32"]
    assert [run.role for run in report.runs] == ["candidate", "candidate", "reference"]
    assert report.reference is not None
    assert report.reference.run == 2


def test_unreadable_pictures_are_listed_and_make_the_report_invalid(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    whole = (picture_folder / "bee/3.png").read_bytes()
    (picture_folder / "bee/3.png").write_bytes(whole[: len(whole) // 2])
    (picture_folder / "cat/4.png").write_bytes(b"")
    report = measure([put(bundles, "a.edgecls")], picture_folder, latency=False, output=tmp_path / "r.json")
    assert not report.valid
    assert report.exit_code == 4
    assert [reason.split(":")[0] for reason in report.reasons] == ["cannot read bee/3.png", "cannot read cat/4.png"]
    assert report.runs[0].valid
    assert report.runs[0].accuracy is not None
    assert report.runs[0].accuracy.n == 28
    assert (report.dataset.n, report.dataset.n_unreadable) == (30, 2)
    assert read_report(tmp_path / "r.json") == report


def test_a_picture_that_changes_meanwhile_is_not_measured(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    def meddle(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        (picture_folder / "cat/9.png").write_bytes((picture_folder / "ant/0.png").read_bytes())
        return brightest(crop)

    bundle = put(bundles, "a.edgecls", logits=meddle)
    report = measure([bundle], picture_folder, latency=False, output=tmp_path / "r.json")
    assert report.reasons == ("cannot read cat/9.png: it was changed while the measurement ran",)


def test_nothing_readable_is_an_error_and_leaves_an_older_report_alone(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    for path in picture_folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    (tmp_path / "r.json").write_text("older")
    for latency in (False, True):
        with pytest.raises(InputError, match=r"none of the 30 pictures .* can be read"):
            measure(
                [put(bundles, "a.edgecls")],
                picture_folder,
                latency=latency,
                accuracy=not latency,
                output=tmp_path / "r.json",
            )
    assert (tmp_path / "r.json").read_text() == "older"


def test_calibration_pictures_are_refused_before_anything_runs(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    def never(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError("classified a picture")

    images = ImageSet.from_folder(picture_folder).images
    used = (images[4].sha256, images[9].sha256, "f" * 64)
    bundle = put(bundles, "int8.edgecls", calibrated_with=used, logits=never)
    with pytest.raises(InputError, match=r"2 of the 30 pictures .* calibrated int8 \(the first: ant/4\.png\)"):
        measure([bundle], picture_folder, output=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_disjoint_calibration_is_summarised(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    bundle = put(bundles, "int8.edgecls", calibrated_with=("e" * 64, "f" * 64))
    report = measure([bundle], picture_folder, latency=False, output=tmp_path / "r.json")
    assert report.runs[0].calibration is not None
    assert report.runs[0].calibration.n == 2


def test_bundles_of_different_classes_are_refused(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    one = put(bundles, "a.edgecls")
    fewer = put(bundles, "b.edgecls", labels=Labels(("ant", "bee")))
    other = put(bundles, "c.edgecls", labels=Labels(("ant", "bee", "dog")))
    with pytest.raises(InputError, match="3 and 2 classes"):
        measure([one, fewer], picture_folder, output=tmp_path / "r.json")
    with pytest.raises(InputError, match="class 2 is 'cat' and 'dog'"):
        measure([one], picture_folder, reference=other, output=tmp_path / "r.json")


def test_identifiers_of_one_bundle_serve_all(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    for folder, name in (("n01", "ant"), ("n02", "bee"), ("n03", "cat")):
        (picture_folder / name).rename(picture_folder / folder)
    plain = put(bundles, "a.edgecls")
    with_ids = put(bundles, "b.edgecls", labels=Labels(LABELS.names, ("n01", "n02", "n03")))
    report = measure([plain, with_ids], picture_folder, latency=False, output=tmp_path / "r.json")
    assert report.runs[0].accuracy is not None
    assert report.runs[0].accuracy.top1 == 1.0
    with pytest.raises(InputError, match="n01"):
        measure([plain], picture_folder, latency=False, output=tmp_path / "r.json")


def test_logits_that_are_not_finite_make_the_run_invalid(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    good = put(bundles, "a.edgecls")
    broken = put(bundles, "b.edgecls", logits=lambda _: np.array([1, np.nan, 0], np.float32))
    report = measure([good, broken], picture_folder, reference=good, latency=False, output=tmp_path / "r.json")
    assert [run.valid for run in report.runs] == [True, False]
    assert "30 pictures gave logits that are not finite" in report.runs[1].reasons[0]
    assert not report.valid
    accuracy = report.runs[1].accuracy
    assert accuracy is not None
    assert (accuracy.top1, accuracy.kl_mean, accuracy.kl_p99) == (0.0, None, None)
    assert b"NaN" not in (tmp_path / "r.json").read_bytes()


def test_an_engine_that_fell_back_makes_the_run_invalid(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    bundle = put(bundles, "a.edgecls", provider_used="somewhere else")
    report = measure([bundle], picture_folder, latency=False, output=tmp_path / "r.json")
    assert report.runs[0].reasons == ("the engine fell back from CPU to somewhere else",)
    assert report.exit_code == 4


def test_pixels_are_made_once_for_all_bundles_that_see_the_same(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Preprocess.pixels

    def counted(self: Preprocess, picture: Any) -> NDArray[np.uint8]:
        sizes.append(self.crop_px)
        return original(self, picture)

    monkeypatch.setattr(Preprocess, "pixels", counted)
    names = [put(bundles, f"{n}.edgecls", crop_px=px) for n, px in enumerate((16, 16, 12))]
    bundles[names[1]].manifest = msgspec.structs.replace(
        bundles[names[1]].manifest,
        preprocess=msgspec.structs.replace(bundles[names[1]].manifest.preprocess, mean=(0.1, 0.2, 0.3)),
    )
    measure(names, picture_folder, latency=False, output=tmp_path / "r.json")
    assert sorted(sizes) == [12] * 30 + [16] * 30


def test_the_limit_takes_pictures_from_every_class(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path
) -> None:
    report = measure([put(bundles, "a.edgecls")], picture_folder, limit=6, latency=False, output=tmp_path / "r.json")
    assert (report.dataset.n, report.dataset.limit, report.dataset.n_folders) == (6, 6, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": False, "latency": False}, "nothing to measure"),
        ({"profile": "fast"}, "no profile is called 'fast'"),
        ({"latency": False, "throughput": True}, "throughput is measured after latency"),
        ({"cores": [9999]}, "cannot be pinned to CPU 9999"),
        ({"cores": [0], "threads": 2}, "2 threads do not fit CPU 0: give"),
        ({"limit": 0}, "a limit of 0"),
        ({"threads": 0}, "0 threads"),
        ({"output": "/nowhere/report.json"}, "does not exist"),
    ],
)
def test_options_that_make_no_sense(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure([put(bundles, "a.edgecls")], picture_folder, **{"output": tmp_path / "r.json", **options})


def test_no_bundle_is_an_error(picture_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        measure([], picture_folder, output=tmp_path / "r.json")
