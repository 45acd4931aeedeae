"""What a model card gets from reports."""

import msgspec
import pytest
import reports

from edgecls.bench.measured import Measured
from edgecls.bench.model_index import model_index, model_index_yaml
from edgecls.runtime.errors import InputError

replace = msgspec.structs.replace


def measured(report, name="A"):
    return Measured(name, report, None, None)


def test_yaml_is_the_document():
    yaml = pytest.importorskip("yaml")
    report = reports.report(model='Pi: "5" # café')
    last = report.runs[1]
    odd = replace(last, name="- int8: no", accuracy=replace(last.accuracy, top5=0.00001, macro_f1=1.0))
    both = [measured(replace(report, runs=(report.runs[0], odd))), measured(reports.report(), "B")]
    document = yaml.safe_load(model_index_yaml(both))
    assert document == {"model-index": model_index(both)}
    assert [(entry["name"], len(entry["results"])) for entry in document["model-index"]] == [
        ("fp32", 2),
        ("- int8: no", 1),
        ("int8", 1),
    ]


def test_the_hub_reads_it():
    hub = pytest.importorskip("huggingface_hub")
    yaml = pytest.importorskip("yaml")
    report = reports.report()
    only = replace(report, runs=report.runs[1:], reference=None)
    card = hub.ModelCard(f"---\n{model_index_yaml([measured(only)])}\nlicense: mit\n---\n# int8\n")
    found = card.data.eval_results
    assert card.data.model_name == "int8"
    assert [(item.metric_type, item.metric_value) for item in found] == [
        ("accuracy", 0.93),
        ("latency", 4.0),
    ]
    assert {item.task_type for item in found} == {"image-classification"}
    assert found[0].dataset_type == "imagefolder"
    assert found[0].dataset_name == "300 pictures of 3 classes"
    assert found[0].dataset_args == {"sha256": "d"}
    assert "Raspberry Pi 5" in found[1].metric_name
    assert yaml.safe_load(card.data.to_yaml())["model-index"][0]["name"] == "int8"


def test_the_drop_names_its_reference():
    metrics = model_index([measured(reports.report())])[1]["results"][0]["metrics"]
    drop = next(metric for metric in metrics if metric["type"] == "accuracy_drop")
    assert drop["name"] == "drop of top-1 against fp32, percentage points"
    assert (drop["value"], drop["args"]) == (2.0, {"ci95": [0.5, 3.5]})


def test_a_card_quotes_nothing_that_is_not_valid_or_was_not_measured():
    report = reports.report()
    with pytest.raises(InputError, match="A is not valid"):
        model_index([measured(replace(report, valid=False, reasons=("hot",)))])
    bare = replace(report, runs=tuple(replace(run, accuracy=None) for run in report.runs))
    with pytest.raises(InputError, match="A holds no accuracy of fp32"):
        model_index([measured(bare)])
