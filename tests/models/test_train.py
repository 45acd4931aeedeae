from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import PIL
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_pictures import write_network, write_pictures
from trainings import RECIPE, KilledError, Killer, fit

from edgecls.models import open_classifier, timm_zoo, train, trainer
from edgecls.models.architecture import find_architecture
from edgecls.models.recipe import Recipe
from edgecls.models.training_data import TrainingData
from edgecls.models.training_record import Epoch, TrainingRecord, library_versions
from edgecls.runtime import InputError, Labels

import timm  # isort: skip


EPOCH = Epoch(
    phase="head", epoch=1, side_px=32, learning_rate=0.0, loss=0.0, val_loss=0.0, val_top1=0.0, val_balanced=0.0,
    seconds=0.0,
)  # fmt: skip
"""Of a training that did nothing."""


def test_it_learns_and_the_file_needs_nothing_else(network: str, data: TrainingData, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=14, mixup=0.0, cutmix=0.0)
    result = fit(network, data, tmp_path / "colours.safetensors", recipe)
    assert result.record.val_top1 > 0.8
    assert result.record.best in result.record.epochs
    with safe_open(result.path, "pt") as file:
        assert "edgecls.model" in file.metadata()
    classifier = open_classifier(network, checkpoint=result.path)
    assert classifier.labels == Labels(names=("blue", "green", "red"))
    assert (classifier.preprocess.crop_px, classifier.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    written = msgspec.json.decode(result.record_path.read_bytes(), type=TrainingRecord)
    assert written == result.record
    assert written.recipe == recipe
    assert written.pillow == PIL.__version__
    assert not list(tmp_path.glob(".*"))


def test_the_record_says_what_was_taken_and_older_ones_are_read(data: TrainingData, tmp_path: Path) -> None:
    older = Path(__file__).parents[1] / "data" / "mobilenet_v3_small_cifar10.first.train.json"
    record = msgspec.json.decode(older.read_bytes(), type=TrainingRecord)
    assert (record.limit, record.half, record.match, record.pillow) == (None, False, "name", None)
    recipe = msgspec.structs.replace(RECIPE, epochs=1)
    few = TrainingData.open(data.train.root, limit=9)
    assert fit(write_network(tmp_path), few, tmp_path / "a.safetensors", recipe).record.limit == 9


def test_another_training_is_not_resumed(network: str, data: TrainingData, tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    with pytest.raises(KilledError):
        fit(network, data, output, progress=Killer(8))
    with pytest.raises(InputError, match="unfinished training"):
        fit(network, data, output)
    with pytest.raises(InputError, match="another training"):
        fit(network, data, output, msgspec.structs.replace(RECIPE, seed=6), resume=True)
    (tmp_path / ".a.safetensors.training").write_bytes(b"PK not really")
    with pytest.raises(InputError, match="damaged"):
        fit(network, data, output, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        fit(network, data, tmp_path / "b.safetensors", resume=True)


def test_a_training_is_not_resumed_once_its_pictures_are_drawn_in_another_order(network: str, tmp_path: Path) -> None:
    root, output = write_pictures(tmp_path / "pictures", 5), tmp_path / "a.safetensors"
    data = TrainingData.open(root)
    with pytest.raises(KilledError):
        fit(network, data, output, progress=Killer(3))
    first = root / data.train.images[0].path
    last = first.rename(first.with_name("z.png"))
    renamed = TrainingData.open(root)
    assert renamed.train.digest == data.train.digest
    with pytest.raises(InputError, match="another training"):
        fit(network, renamed, output, resume=True)
    last.rename(first.with_name("0-.png"))
    fit(network, TrainingData.open(root), output, resume=True)


def test_a_training_is_not_resumed_where_it_would_go_on_otherwise(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, state = tmp_path / "a.safetensors", tmp_path / ".a.safetensors.training"
    with pytest.raises(KilledError):
        fit(network, data, output, progress=Killer(8))
    with pytest.raises(InputError, match="begun with --threads 1 and would go on with 2.*give --threads 1,"):
        fit(network, data, output, resume=True, threads=2)
    with monkeypatch.context() as patch:
        patch.setattr(train, "library_versions", lambda: {**library_versions(), "pillow": "0.1"})
        with pytest.raises(InputError, match=rf"would go on with 0\.1.*install pillow {library_versions()['pillow']}"):
            fit(network, data, output, resume=True)
    code = tmp_path / "network.py"
    was = code.read_text()
    for changed in (was + "# another\n", was.replace("16", "24")):
        code.write_text(changed)
        with pytest.raises(InputError, match="code of the network.*put the code back"):
            fit(network, data, output, resume=True)
    code.write_text(was)
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "conditions": {**saved["conditions"], "processes": "2"}}, state)
    with pytest.raises(InputError, match="begun with processes 2 and would go on with 1.*launch 2 processes"):
        fit(network, data, output, resume=True)
    torch.save(saved, state)
    fit(network, data, output, resume=True)


LARGE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("large", torch.tensor(1e6))

    def forward(self, pictures):
        return self.fc(pictures.mean((2, 3)))
"""


def test_weights_too_large_for_16_bits_are_written_in_32_without_training_again(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(LARGE)
    arguments = f"{tmp_path / 'net.py'}:Net", data, tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"'large' holds 1e\+06.*leave out --half, and give --resume"):
        fit(*arguments, half=True)
    assert not arguments[2].exists()
    monkeypatch.setattr(trainer.Trainer, "_step", lambda *_: pytest.fail("it trains again"))
    fit(*arguments, resume=True)
    assert load_file(arguments[2])["large"] == 1e6


def test_a_frozen_backbone_keeps_every_bit(network: str, data: TrainingData, tmp_path: Path) -> None:
    base = fit(network, data, tmp_path / "base.safetensors")
    recipe = Recipe(epochs=0, head_epochs=2, batch_size=8, seed=1)
    tuned = fit(network, data, tmp_path / "tuned.safetensors", recipe, from_scratch=False, checkpoint=base.path)
    before, after = load_file(base.path), load_file(tuned.path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"9.weight", "9.bias"}
    assert tuned.record.start == "checkpoint"
    assert tuned.record.start_sha256 == base.record.weights_sha256


@pytest.mark.parametrize("arch", ["timm:test_vit", "timm:test_resnet", "torchvision:resnet18"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_without_a_head_gets_a_new_one(
    arch, prefix, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = find_architecture(arch).build(32)
    head = find_architecture(arch).head(network, 32)
    backbone = {name: t for name, t in network.state_dict().items() if not name.startswith(f"{head[0]}.")}
    torch.save({f"{prefix}{name}": tensor for name, tensor in backbone.items()}, tmp_path / "headless.pth")
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: (self._network.state_dict(), (EPOCH,), EPOCH))
    recipe = Recipe(epochs=1, batch_size=8)
    result = fit(
        arch, data, tmp_path / "a.safetensors", recipe, from_scratch=False, checkpoint=tmp_path / "headless.pth"
    )
    weights = load_file(result.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.items())
    assert weights[f"{head[0]}.weight"].shape[0] == 3


def test_a_backbone_with_other_gaps_is_refused(data: TrainingData, tmp_path: Path) -> None:
    weights = find_architecture("timm:test_vit").build(32).state_dict()
    del weights["head.weight"], weights["head.bias"], weights["norm.weight"]
    torch.save(weights, tmp_path / "gaps.pth")
    with pytest.raises(InputError, match=r"3 missing in the checkpoint: norm\.weight"):
        fit("timm:test_vit", data, tmp_path / "a.safetensors", from_scratch=False, checkpoint=tmp_path / "gaps.pth")


def test_weights_of_timm_without_a_classifier_get_one(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = timm.create_model("test_vit", num_classes=0, img_size=32)
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    config = {"file": str(tmp_path / "model.safetensors"), "num_classes": 0}
    known = timm_zoo.TimmModel("test_vit")._config
    monkeypatch.setattr(timm_zoo.TimmModel, "_config", {**known, **config})
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: (self._network.state_dict(), (EPOCH,), EPOCH))
    with pytest.raises(InputError, match="have no classifier"):
        open_classifier("timm:test_vit")
    result = fit("timm:test_vit", data, tmp_path / "a.safetensors", Recipe(batch_size=8), from_scratch=False)
    weights = load_file(result.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
    assert weights["head.weight"].shape == (3, 64)
    assert result.record.start == "library"


def test_half_precision_halves_the_file_and_is_validated_as_stored(
    network: str, data: TrainingData, tmp_path: Path
) -> None:
    result = fit(network, data, tmp_path / "half.safetensors", half=True)
    assert result.record.half
    weights = load_file(result.path)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16, torch.int64}
    classifier = open_classifier(network, checkpoint=result.path)
    right = 0
    for image in data.val.images:
        pixels = classifier.preprocess.pixels(data.val.root / image.path)
        logits = classifier.source(torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float())
        right += int(np.argmax(logits.numpy()) == image.label)
    assert right / len(data.val) == pytest.approx(result.record.val_top1)


def test_a_library_network_is_exported_from_its_file_alone(data: TrainingData, tmp_path: Path) -> None:
    recipe = Recipe.from_scratch(epochs=1, batch_size=16)
    result = fit("torchvision:mobilenet_v3_small", data, tmp_path / "net.safetensors", recipe)
    classifier = open_classifier(str(result.path))
    assert (classifier.name, len(classifier.labels)) == ("net", 3)
    assert classifier.preprocess == result.record.preprocess


def test_a_file_of_weights_never_decides_which_code_runs(network: str, data: TrainingData, tmp_path: Path) -> None:
    result = fit(network, data, tmp_path / "own.safetensors")
    with pytest.raises(InputError, match=r"code of your own.*--checkpoint"):
        open_classifier(str(result.path))


def test_a_network_with_other_classes_than_the_pictures_is_refused(network: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 3)
    (root / "red").rename(tmp_path / "red")
    with pytest.raises(InputError, match="answers with 3 classes and the pictures have 2"):
        fit(network, TrainingData.open(root), tmp_path / "a.safetensors")


def test_weights_that_cannot_be_had_name_the_file_and_the_other_way(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    with pytest.raises(InputError, match=r"mobilenet_v3_small.*--checkpoint.*--from-scratch"):
        fit("torchvision:mobilenet_v3_small", data, tmp_path / "a.safetensors", from_scratch=False)


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")
