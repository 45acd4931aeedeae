"""What may be compared, and what the comparison gives."""

import hashlib
import math
import zipfile

import msgspec
import numpy as np
import pytest
import reports
from scipy import stats

from edgecls.bench.compare import compare
from edgecls.bench.comparison_table import csv_text, markdown, throughput_table, variant_table
from edgecls.bench.energy import Energy
from edgecls.bench.measured import Measured, open_measured, visible
from edgecls.bench.report import predictions_path, samples_path, write_report
from edgecls.bench.statistics import confidence_interval
from edgecls.bench.throughput import BatchThroughput, Throughput
from edgecls.runtime.errors import InputError

replace = msgspec.structs.replace


def measured(report, name="A"):
    return Measured(name, report, None, None)


def contrast_of(first, other, name="int8"):
    return next(item for item in compare([measured(first), measured(other, "B")]).contrasts if item.name == name)


def each_run(report, **changes):
    return replace(report, runs=tuple(replace(run, **changes) for run in report.runs))


def test_the_same_conditions_give_a_ratio_with_its_interval():
    contrast = contrast_of(reports.report(), reports.report(speed=2.0))
    assert contrast.against == "int8"
    assert contrast.same_bundle
    assert contrast.differences == ()
    assert contrast.ratio == pytest.approx(2.0)
    spread = np.log([0.98, 1.0, 1.02])
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 * spread.var(ddof=1) / 3)
    assert contrast.ratio_ci95 == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def changed_engine(report):
    return each_run(report, engine=replace(report.runs[0].engine, version="1.23"))


def changed_threads(report):
    return each_run(report, engine=replace(report.runs[0].engine, threads=4))


def changed_gpu(report):
    engine = replace(report.runs[0].engine, device="Orin, driver 540.4.0, CUDA 12.6")
    return each_run(report, engine=engine)


def changed_pinned_cores(report):
    return each_run(report, latency=replace(report.runs[1].latency, cpus=(4, 5)))


def changed_power_mode(report):
    before = replace(report.conditions.before, governors=("powersave",))
    return replace(report, conditions=replace(report.conditions, before=before))


def changed_input_shape(report):
    taken = report.runs[0].preprocess
    return each_run(report, preprocess=replace(taken, settings=replace(taken.settings, crop_px=8)))


def changed_profile(report):
    return replace(report, tool=replace(report.tool, profile=replace(report.tool.profile, launches=5)))


def changed_device(report):
    return reports.report(model="Raspberry Pi 4")


@pytest.mark.parametrize(
    ("change", "field", "first", "here"),
    [
        (
            changed_device,
            "device",
            "Raspberry Pi 5, Cortex-A76, arm64, 4 of 4 cores",
            "Raspberry Pi 4, Cortex-A76, arm64, 4 of 4 cores",
        ),
        (changed_engine, "engine", "onnxruntime 1.22, CPU", "onnxruntime 1.23, CPU"),
        (changed_threads, "threads", "2", "4"),
        (changed_gpu, "gpu", None, "Orin, driver 540.4.0, CUDA 12.6"),
        (changed_pinned_cores, "pinned_cores", "0, 1", "4, 5"),
        (changed_power_mode, "power_mode", "performance", "powersave"),
        (changed_input_shape, "input_shape", "1 × 16 × 16 × 3", "1 × 8 × 8 × 3"),
        (changed_profile, "profile", "quick, 3 × 5 s", "quick, 5 × 5 s"),
    ],
)
def test_what_differs_forbids_a_ratio_and_is_named(change, field, first, here):
    contrast = contrast_of(reports.report(), change(reports.report()))
    assert [msgspec.structs.astuple(item) for item in contrast.differences] == [(field, first, here)]
    assert contrast.ratio is None
    assert contrast.ratio_ci95 is None
    assert (contrast.first_p50_ms, contrast.p50_ms) == (4.0, 4.0)
    assert contrast.notes[0] == (
        f"no ratio, for these differ: {field.replace('_', ' ')} ({first or 'unknown'} | {here})"
    )


def test_an_invalid_report_gives_neither_ratio_nor_drop():
    contrast = contrast_of(reports.report(), replace(reports.report(), valid=False, reasons=("it was hot",)))
    assert (contrast.ratio, contrast.drop_pp, contrast.ci95_pp) == (None, None, None)
    assert contrast.notes == ("no ratio: B is not valid", "no drop: B is not valid")


def test_what_was_not_measured_gives_neither_ratio_nor_drop():
    contrast = contrast_of(reports.report(), each_run(reports.report(), latency=None, accuracy=None))
    assert (contrast.ratio, contrast.drop_pp) == (None, None)
    assert [note.partition(":")[0] for note in contrast.notes] == ["no ratio", "no drop"]


def test_other_pictures_give_no_drop():
    other = reports.report()
    contrast = contrast_of(reports.report(), replace(other, dataset=replace(other.dataset, sha256="e")))
    assert contrast.drop_pp is None
    assert contrast.notes == ("no drop: the pictures are not the same",)


def test_other_numbers_of_readable_pictures_give_no_drop():
    other = reports.report()
    contrast = contrast_of(reports.report(), each_run(other, accuracy=replace(other.runs[1].accuracy, n=299)))
    assert contrast.drop_pp is None
    assert contrast.notes == ("no drop: 300 of the pictures could be read in A, 299 in B",)


def test_a_variant_of_another_name_is_compared_with_the_first_reference():
    other = reports.report()
    other = replace(other, runs=(other.runs[0], replace(other.runs[1], name="fp16")))
    contrast = contrast_of(reports.report(), other, "fp16")
    assert contrast.against == "fp32"
    assert contrast.ratio == pytest.approx(0.4)
    assert contrast.drop_pp == pytest.approx(2.0)
    assert "no interval of the drop" in contrast.notes[0]


def test_predictions_beside_both_reports_pair_the_drop(tmp_path):
    for name in ("a", "b"):
        reports.write_beside(tmp_path / f"{name}.json", reports.report())
    first, second = open_measured([tmp_path / "a.json", tmp_path / "b.json"])
    renamed = replace(second.report, runs=(second.report.runs[0], replace(second.report.runs[1], name="new")))
    contrast = compare([first, Measured("b", renamed, None, second.answered)]).contrasts[1]
    low, high = confidence_interval(6, 0, 300)
    assert contrast.drop_pp == pytest.approx(2.0)
    assert contrast.ci95_pp == pytest.approx((100 * low, 100 * high))


def test_the_same_pictures_under_other_names_are_paired(tmp_path):
    for name in ("a", "b"):
        reports.write_beside(tmp_path / f"{name}.json", reports.report())
    with np.load(predictions_path(tmp_path / "b.json")) as arrays:
        np.savez(predictions_path(tmp_path / "b.json"), **{name: array[::-1] for name, array in arrays.items()})
    contrast = compare(open_measured([tmp_path / "a.json", tmp_path / "b.json"])).contrasts[1]
    low, high = confidence_interval(0, 0, 300)
    assert contrast.ci95_pp == pytest.approx((100 * low, 100 * high))


def test_the_interval_of_top1_is_wilsons():
    variant = compare([measured(reports.report())]).variants[1]
    expected = stats.binomtest(279, 300).proportion_ci(method="wilson")
    assert variant.top1_ci95 == pytest.approx((expected.low, expected.high))
    assert variant.coldstart_ms == 350


def test_reports_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("pi", "jetson"):
        (tmp_path / folder).mkdir()
        write_report(reports.report(), tmp_path / folder / "report.json")
    paths = [tmp_path / folder / "report.json" for folder in ("pi", "jetson", "pi")]
    assert [item.name for item in open_measured(paths)] == ["pi/report (1)", "jetson/report", "pi/report (2)"]
    assert [item.name for item in open_measured(paths[:1])] == ["report"]


def test_what_lies_beside_a_report_is_read(tmp_path):
    reports.write_beside(tmp_path / "a.json", reports.report())
    (item,) = open_measured([tmp_path / "a.json"])
    assert [len(launches) for launches in item.samples_ms] == [3, 3]
    assert np.median(item.samples_ms[1][1]) == pytest.approx(4.0)
    assert item.answered.right.sum(1).tolist() == [285, 279]


def test_what_does_not_belong_to_its_report_is_refused(tmp_path):
    path = tmp_path / "a.json"
    reports.write_beside(path, reports.report())
    few = {f"run{run}_launch{launch}_ns": np.array([5]) for run in range(2) for launch in range(3)}
    np.savez(samples_path(path), **few)
    with pytest.raises(InputError, match=r"a\.samples\.npz.*40 positive samples"):
        open_measured([path])


@pytest.mark.parametrize("place", [predictions_path, samples_path])
def test_a_report_that_was_copied_beside_the_files_of_another_is_refused(tmp_path, place):
    path = tmp_path / "a.json"
    reports.write_beside(path, reports.report())
    field = f"{place(path).suffixes[0][1:]}_sha256"
    own, other = (hashlib.sha256(content).hexdigest() for content in (place(path).read_bytes(), b"other"))
    write_report(replace(reports.report(), **{field: own}), path)
    assert len(open_measured([path])) == 1
    write_report(replace(reports.report(), **{field: other}), path)
    with pytest.raises(InputError, match=rf"its sha256 is {own[:12]}\.\.\., the report names {other[:12]}"):
        open_measured([path])


def test_the_answers_beside_a_report_without_digests_must_give_its_top1(tmp_path):
    path = tmp_path / "a.json"
    reports.write_beside(path, reports.report())
    report = reports.report()
    better = replace(report.runs[1], accuracy=reports.accuracy(1))
    write_report(replace(report, runs=(report.runs[0], better)), path)
    with pytest.raises(InputError, match=r"93\.00% of its answers are right, top-1 in the report is 99\.00%"):
        open_measured([path])


def test_reports_whose_names_end_in_numbers_have_files_of_their_own(tmp_path):
    for name, wrong in (("lite-1.0", 5), ("lite-1.5", 8)):
        report = reports.report()
        run = replace(report.runs[0], accuracy=reports.accuracy(wrong))
        path = tmp_path / name
        write_report(replace(report, runs=(run,)), path)
        np.savez(
            predictions_path(path),
            sha256=np.array([f"{number:064x}" for number in range(300)]),
            label=reports.TRUTH,
            run0_top=reports.answers(wrong)[:, None],
        )
    opened = open_measured([tmp_path / "lite-1.0", tmp_path / "lite-1.5"])
    assert [(item.name, item.answered.right.sum()) for item in opened] == [("lite-1.0", 285), ("lite-1.5", 276)]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_file_beside_a_report_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    reports.write_beside(path, reports.report())
    predictions_path(path).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.predictions\.npz is damaged"):
        open_measured([path])


def test_pickles_and_bombs_beside_a_report_are_refused(tmp_path):
    path = tmp_path / "a.json"
    write_report(reports.report(), path)
    np.savez(samples_path(path), run0_launch0_ns=np.array([print], dtype=object))
    with pytest.raises(InputError, match="Object arrays"):
        open_measured([path])
    with (
        zipfile.ZipFile(samples_path(path), "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("run0_launch0_ns.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(257):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="269484032 bytes"):
        open_measured([path])


def test_a_file_beside_a_report_whose_bytes_are_broken_is_damaged(tmp_path):
    path = tmp_path / "a.json"
    write_report(reports.report(), path)
    np.savez_compressed(samples_path(path), run0_launch0_ns=np.arange(1, 9999, dtype=np.int64))
    content = bytearray(samples_path(path).read_bytes())
    content[70:90] = bytes(20)
    samples_path(path).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.samples\.npz is damaged"):
        open_measured([path])


def test_numbers_that_no_measurement_gives_are_refused(tmp_path):
    path = tmp_path / "a.json"
    good = reports.report()
    slow = replace(good.runs[0], latency=replace(good.runs[0].latency, p50_ms=0.0))
    launches = tuple(replace(launch, ratio=0.0) for launch in good.runs[0].latency.launches)
    no_ratio = replace(good.runs[0], latency=replace(good.runs[0].latency, launches=launches))
    far = tuple(replace(launch, ratio=1e-300) for launch in good.runs[0].latency.launches)
    far_ratio = replace(good.runs[0], latency=replace(good.runs[0].latency, launches=far))
    huge = replace(good.dataset, n=10**16)
    for bad in (
        replace(good, runs=(slow,)),
        replace(good, dataset=huge),
        replace(good, runs=()),
        replace(good, reference=replace(good.reference, run=2)),
        replace(good, runs=(good.runs[0], replace(good.runs[1], valid=False, reasons=("it died",)))),
        replace(good, runs=(no_ratio,)),
        replace(good, runs=(far_ratio,)),
        replace(good, reasons=("it was hot",)),
    ):
        write_report(bad, path)
        with pytest.raises(InputError, match="get the report again"):
            open_measured([path])


def test_what_cannot_be_seen_is_shown():
    assert visible("a\u202eb\x00\n\ud800ü猫\u200d") == "a\\u202eb\\x00\\n\\ud800ü猫\u200d"


def test_spaces_of_any_script_are_seen():
    for text in ("三毛　猫", "chat\u00a0noir"):
        assert visible(text) == text
    assert visible("a\u2028b") == "a\\u2028b"


def test_markdown_takes_nothing_from_a_report_for_markup(tmp_path):
    report = reports.report()
    hostile = replace(report.runs[1], name="a|b`<img src=x>@all\n# title")
    write_report(replace(report, runs=(report.runs[0], hostile)), tmp_path / "a.json")
    lines = markdown(compare(open_measured([tmp_path / "a.json"]))).splitlines()
    assert "| `a\\|b'<img src=x>@all\\n# title` | `a` |" in lines[3]
    assert len(lines) == 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_csv_has_a_row_a_variant_and_no_formulas():
    report = reports.report()
    report = replace(report, runs=(report.runs[0], replace(report.runs[1], name="=1+1")))
    head, *rows = csv_text(compare([measured(report)])).splitlines()
    assert head.startswith(
        "report,name,role,valid,device,engine,threads,gpu,pinned_cores,power_mode,input_shape,profile,sha256,"
    )
    assert [row.split(",")[1] for row in rows] == ["fp32", "'=1+1"]
    assert "drop_pp,ci95_pp_low,ci95_pp_high" in head


def powered(report):
    """The report with energy and throughput of its second run."""
    cells = (
        BatchThroughput(batch=1, threads=1, images=90, images_per_s=30.25),
        BatchThroughput(batch=8, threads=2, images=900, images_per_s=300.5),
    )
    energy = Energy(
        source="RAPL", scope="package-0", seconds=2.0, inferences=100, joules=0.05, mean_w=0.025, mj_per_inference=0.5
    )
    second = replace(report.runs[1], throughput=Throughput(cells=cells, error="it died"), energy=energy)
    return replace(report, runs=(report.runs[0], second))


def test_energy_and_throughput_are_compared():
    comparison = compare([measured(powered(reports.report()))])
    table = variant_table(comparison)
    seldom = [table.head.index(name) for name in ("energy of", "mJ per inference", "best pictures/s")]
    assert [[row[column].text for column in seldom] for row in table.rows] == [
        ["-", "-", "-"],
        ["RAPL, package-0", "0.500", "300.5 (batch 8, 2 threads)"],
    ]
    assert table.texts == 6
    speeds = throughput_table(comparison)
    assert speeds.head == ("variant", "report", "batch 1, 1 thread", "batch 8, 2 threads")
    assert [[cell.text for cell in row] for row in speeds.rows] == [["int8", "A", "30.2", "300.5"]]
    assert "| `int8` | `A` | 30.2 | 300.5 |" in markdown(comparison)
    assert "| `RAPL, package-0` |" in markdown(comparison)
    head, reference, candidate = csv_text(comparison).splitlines()
    fields = "mj_per_inference,energy_scope,best_images_per_s,best_batch,best_threads"
    assert head.endswith(fields)
    assert reference.endswith(",,,,,")
    assert candidate.endswith(',0.5,"RAPL, package-0",300.5,8,2')
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=type(comparison)) == comparison


def test_without_energy_and_throughput_there_are_no_columns():
    comparison = compare([measured(reports.report())])
    assert not {"energy of", "mJ per inference", "best pictures/s"} & set(variant_table(comparison).head)
    assert throughput_table(comparison) is None


def test_what_is_very_fast_keeps_three_digits():
    report = reports.report(speed=0.004)
    fast = replace(report.runs[1], latency=reports.latency(0.016, 0.0042))
    comparison = compare([measured(report), measured(replace(report, runs=(report.runs[0], fast)), "B")])
    text = markdown(comparison)
    assert "| 0.0160 [0.0144, 0.0176] |" in text
    assert "| 0.00420 [0.00378, 0.00462] |" in text


def test_the_comparison_survives_json():
    comparison = compare([measured(reports.report()), measured(changed_engine(reports.report()), "B")])
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=type(comparison)) == comparison
